"""One HTTP request and its answer, on bare ASGI: reads JSON, replies, streams events, notices that a client left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from tgi_server.errors import BadSyntax, ClientGone, RequestError, WrongMediaType, WrongShape, refuse

Model = TypeVar("Model", bound=BaseModel)
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENT_HEADERS: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
KEEP_ALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"


def event(content: object) -> bytes:
    """A server-sent event with compact JSON."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


class Exchange:
    """A request being answered."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.sending_since = 0.0  #: time.monotonic() since when the client lets a write wait, 0 if it does not
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()

    def header(self, name: bytes) -> str:
        """The value of a request header, "" if absent."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), "")

    async def read(self, model: type[Model]) -> Model:
        """The request body.

        Raises:
            WrongMediaType, BadSyntax, WrongShape: it is not JSON of this model.
        """
        if not _is_json(self.header(b"content-type")):
            raise WrongMediaType
        body = await self._body()
        try:
            content = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadSyntax(str(error)) from None
        try:
            return model.model_validate(content)
        except ValidationError as error:
            raise _wrong_shape(error, body) from None

    async def _body(self) -> bytes:
        chunks = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(chunks)

    def watch(self, when_gone: Callable[[], None]) -> None:
        """Call back once when the client closes its connection.  The body must have been read."""
        self._watcher = asyncio.create_task(self._watch(when_gone))

    async def _watch(self, when_gone: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        when_gone()

    def close(self) -> None:
        """The answer is complete, or nobody wants it."""
        if self._watcher is not None:
            self._watcher.cancel()

    def cut(self) -> None:
        """Stop a task that waits for a client which does not read."""
        if self._task is not None:
            self._task.cancel()

    async def reply(self, content: object, headers: Headers | None = None, status: int = 200) -> None:
        """Send a JSON body."""
        await self.reply_bytes(orjson.dumps(content), [JSON, *(headers or [])], status)

    async def reply_bytes(self, body: bytes, headers: Headers, status: int = 200) -> None:
        """Send a body."""
        head = [(b"content-length", b"%d" % len(body)), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    async def reply_error(self, error: RequestError) -> None:
        """Send an error in the shape of this path."""
        await refuse(error, self.scope, self._send)

    async def start_events(self, headers: Headers) -> None:
        """Send the head of an event stream; its status is 200 whatever follows."""
        await self._send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS + headers})

    async def send_events(self, data: bytes) -> None:
        """Send one or more events; waits while the client does not read."""
        self.sending_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.sending_since = 0.0

    async def end_events(self, data: bytes = b"") -> None:
        """Send the last events and end the stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _wrong_shape(error: ValidationError, body: bytes) -> WrongShape:
    """The first problem, as serde words it where it can be."""
    problem: Any = error.errors(include_url=False, include_context=False)[0]
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "missing":
        name = location.pop()
        message = f"missing field `{name}`" + ("" if location else f" at {_end_of(body)}")
    else:
        message = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
    where = ".".join(location)
    return WrongShape(f"{where}: {message}" if where else message, param=where or None)


def _end_of(body: bytes) -> str:
    """Where serde notices that a field is missing: at the end of the object."""
    lines = body.rstrip().split(b"\n")
    return f"line {len(lines)} column {len(lines[-1])}"
