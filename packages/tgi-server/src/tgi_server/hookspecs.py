"""The points at which a plugin can extend the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tgi_core.plugins import hookspec

if TYPE_CHECKING:
    import click
    from starlette.middleware import Middleware
    from starlette.routing import BaseRoute

    from tgi_server.settings import Settings


@hookspec
def tgi_register_routes(settings: Settings) -> Sequence[BaseRoute]:
    """Add routes, FastAPI's or Starlette's; the server's own win, and all need the API key if there is one."""


@hookspec
def tgi_register_middleware(settings: Settings) -> Sequence[Middleware]:
    """Wrap the router in pure ASGI middleware; the limits and the API key stay outside of it."""


@hookspec
def tgi_register_commands() -> Sequence[click.Command]:
    """Add commands to `tgi`; the server's own win."""
