"""One row of the route table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tgi_server.exchange import Exchange
from tgi_server.schemas.base import Body
from tgi_server.service import Service

Handler = Callable[[Service, Exchange], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A method and path, who answers it, and who may ask."""

    method: str
    path: str
    handler: Handler
    summary: str
    is_open: bool = False  #: answered without the API key
    body: type[Body] | None = None
    is_counted: bool = True  #: in tgi_request_count, if it has a body
