"""uvicorn's HTTP/1.1 protocol with deadlines for heads, a cap on connections, and 431 for heads that are too large."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tgi_server.settings import Settings

MAX_DISCARDED_BYTES = 16 * 1024 * 1024  # of a body that was refused already

_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class GuardedProtocol(H11Protocol):
    """A connection.  `guarded_protocol` makes the subclass that knows the settings."""

    header_timeout_s: float
    max_connections: int

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_deadline: asyncio.TimerHandle | None = None
        self._discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse connections above the cap; the others have `header_timeout_s` for their first head."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(503)
        else:
            self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, while the deadline runs whenever a head is incomplete."""
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            self._discard(len(data))
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            self._start_deadline()
        elif self.conn.our_state is not h11.DONE:
            self._stop_deadline()

    def on_response_complete(self) -> None:
        """The next head may have begun already."""
        super().on_response_complete()
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._start_deadline()

    def _discard(self, count: int) -> None:
        """The answer is out, the client goes on sending: read on for a while, so that it gets to see the answer."""
        self._start_deadline()
        self._discarded += count
        if self._discarded > MAX_DISCARDED_BYTES:
            self.transport.close()

    def _start_deadline(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(self.header_timeout_s, self._refuse, 408)

    def _stop_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this while it handles h11's error, which knows a better status."""
        error = sys.exc_info()[1]
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(hint if hint in _REASONS else 400)

    def _refuse(self, status: int) -> None:
        """Answer without the application and close."""
        self._stop_deadline()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            reason = _REASONS[status]
            head = b"HTTP/1.1 %d %s\r\nconnection: close\r\n" % (status, reason)
            kind = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n\r\n" % len(reason)
            if self.conn.our_state is not h11.DONE:
                self.transport.write(head + kind + reason)
        self.transport.close()


def guarded_protocol(settings: Settings) -> type[GuardedProtocol]:
    """The protocol with the limits of these settings."""

    class Protocol(GuardedProtocol):
        header_timeout_s = settings.header_timeout
        max_connections = settings.max_connections

    return Protocol
