"""Marks what of the plugin API goes away; docs/plugin-api.md has the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from typing_extensions import deprecated as warns_when_used

Marked = TypeVar("Marked", bound=Callable[..., object])


def deprecated(*, since: str, use: str) -> Callable[[Marked], Marked]:
    """Mark a class, a function, a method or a hook, which goes on working: whoever uses it gets a `DeprecationWarning`.

    To use a hook is to implement it: `tgi_core.plugins.manager` warns when such a plugin is loaded.

    Args:
        since: the version that marks it.
        use: what to write instead.
    """

    def mark(target: Marked) -> Marked:
        message = f"{target.__qualname__} is deprecated since tgi-core {since}; use {use}"
        target.__doc__ = f"{target.__doc__ or ''}\n\nDeprecated since {since}: use {use}.".lstrip()
        return warns_when_used(message)(target)

    return mark


def deprecation(target: object) -> str:
    """What a person reads of something that is marked; "" of all else."""
    return str(getattr(target, "__deprecated__", ""))
