"""What stands before every route, in pure ASGI: limits of headers and bodies, and the API key."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgi_server.errors import AmbiguousHead, BodyTooLarge, BodyTooSlow, HeadersTooLarge, WrongKey, refuse

SLOWEST_BODY = 1024  # bytes per second, once the grace is over


class RequestLimits:
    """Refuses requests with too many headers, and cuts bodies that are too large or too slow while they are read."""

    def __init__(
        self, app: ASGIApp, *, header_bytes: int, header_fields: int, body_bytes: int, body_grace_s: float
    ) -> None:
        self._app = app
        self._header_bytes = header_bytes
        self._header_fields = header_fields
        self._body_bytes = body_bytes
        self._body_grace_s = body_grace_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400, 431 or 413 at once, or pass on with a guarded `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        if len(headers) > self._header_fields or sum(len(k) + len(v) for k, v in headers) > self._header_bytes:
            await refuse(HeadersTooLarge(), scope, send)
        elif doubt := _doubt(scope):
            await refuse(AmbiguousHead(doubt), scope, send)
        elif _content_length(headers) > self._body_bytes:
            await refuse(BodyTooLarge(), scope, send)
        else:
            await self._app(scope, self._guarded(receive), send)

    def _guarded(self, receive: Receive) -> Receive:
        started_at = time.monotonic()
        received = 0
        is_complete = False

        async def guarded() -> Message:
            nonlocal received, is_complete
            if is_complete:
                return await receive()
            deadline = started_at + self._body_grace_s + received / SLOWEST_BODY
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise BodyTooSlow from None
            received += len(message.get("body", b""))
            if received > self._body_bytes:
                raise BodyTooLarge
            is_complete = not message.get("more_body", False)
            return message

        return guarded


def _doubt(scope: Scope) -> str:
    """Why a proxy might see other requests on this connection than we do, "" if there is no reason."""
    names = {name for name, _ in scope["headers"]}
    if names >= {b"content-length", b"transfer-encoding"}:
        return "it has both a content-length and a transfer-encoding"
    return "" if scope["http_version"] in ("1.0", "1.1") else "its version is not HTTP/1.1"


def _content_length(headers: list[tuple[bytes, bytes]]) -> int:
    value = next((v for k, v in headers if k == b"content-length"), b"0")
    return int(value) if value.isdigit() and len(value) < 20 else 0


class ApiKey:
    """Lets requests through that carry the key, or whose method and path are open; everything else is refused."""

    def __init__(self, app: ASGIApp, *, key: str, is_open: Callable[[str, str], bool]) -> None:
        self._app = app
        self._digest = _digest(key.encode())
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or pass on."""
        if scope["type"] != "http" or self._is_open(scope["method"], scope["path"]) or self._has_key(scope):
            await self._app(scope, receive, send)
        else:
            await refuse(WrongKey(), scope, send)

    def _has_key(self, scope: Scope) -> bool:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1:
            return False
        scheme, _, key = values[0].partition(b" ")
        return hmac.compare_digest(_digest(key.strip()), self._digest) and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
