"""Every error that a client can get, and the one table that says how each looks on the wire."""

from __future__ import annotations

from dataclasses import dataclass, replace

import orjson
from starlette.types import Scope, Send


class RequestError(Exception):
    """Base of what a client is told.  The text is shown to the client as it is."""

    def __init__(self, message: str = "", *, param: str | None = None, retry_after_s: int | None = None) -> None:
        kind = KINDS[type(self)]
        super().__init__(kind.prefix + message if message else kind.prefix.rstrip(": "))
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> ErrorKind:
        """How it looks on the wire."""
        return KINDS[type(self)]


class InvalidInput(RequestError):
    """A field breaks a rule or a limit."""


class Overloaded(RequestError):
    """All `max_concurrent_requests` permits are taken."""


class GenerationFailed(RequestError):
    """The engine gave up on a request that it had begun."""


class Unavailable(RequestError):
    """The engine cannot take requests now: it loads, is restarted, or the server shuts down."""


class IncompleteGeneration(RequestError):
    """A generation ended without its final output."""


class TemplateFailed(RequestError):
    """The chat template is missing or refuses the messages."""


class ToolsRefused(RequestError):
    """Tools that cannot be honoured."""


class SuffixRefused(RequestError):
    """`suffix` of a completion."""


class TooManyPrompts(RequestError):
    """More prompts in one request than `max_client_batch_size`."""


class NotHealthy(RequestError):
    """The health check fails."""


class WrongKey(RequestError):
    """The API key is missing or wrong."""


class UnknownPath(RequestError):
    """No route has this path."""


class UnknownModel(RequestError):
    """`/v1/models/{id}` of another model."""


class WrongMethod(RequestError):
    """The path exists, for other methods."""

    def __init__(self, message: str = "", *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class HTTPError(RequestError):
    """What a route of a plugin refuses with a status of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self._kind = replace(KINDS[HTTPError], status=status)

    @property
    def kind(self) -> ErrorKind:
        """How it looks on the wire."""
        return self._kind


class BadSyntax(RequestError):
    """The body is not JSON."""


class WrongMediaType(RequestError):
    """The body does not say that it is JSON."""


class WrongShape(RequestError):
    """JSON, but not what the route expects."""


class BodyTooLarge(RequestError):
    """More bytes than `payload_limit`."""


class BodyTooSlow(RequestError):
    """The body did not arrive in time."""


class HeadersTooLarge(RequestError):
    """More header bytes or fields than allowed."""


class AmbiguousHead(RequestError):
    """Two readings of the request are possible; no more is read from this connection."""


class InternalError(RequestError):
    """A defect of this server; the log has the details."""


class ClientGone(Exception):
    """The client closed its connection; nobody is left to be told."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How an error looks: TGI's routes show `tgi`, OpenAI's `openai` and `code`."""

    status: int
    tgi: str  #: `error_type`; "text": the body is plain text; "empty": there is none
    openai: str
    code: str | None = None
    prefix: str = ""
    counted_as: str = ""  #: label of tgi_request_failure, "" if it is not counted
    closes: bool = False  #: the connection


_INVALID = "invalid_request_error"
_SERVER = "server_error"

KINDS: dict[type[RequestError], ErrorKind] = {
    InvalidInput: ErrorKind(422, "validation", _INVALID, None, "Input validation error: ", "validation"),
    Overloaded: ErrorKind(429, "overloaded", "rate_limit_error", "overloaded", "Model is overloaded", "overloaded"),
    GenerationFailed: ErrorKind(
        424, "generation", _SERVER, "generation_failed", "Request failed during generation: ", "generation"
    ),
    Unavailable: ErrorKind(503, "unavailable", _SERVER, "unavailable", "Model is unavailable: ", "unavailable"),
    IncompleteGeneration: ErrorKind(
        500, "incomplete_generation", _SERVER, "incomplete_generation", "Incomplete generation", "incomplete"
    ),
    TemplateFailed: ErrorKind(422, "template_error", _INVALID, "template_error", "Template error: ", "template"),
    ToolsRefused: ErrorKind(422, "tool_error", _INVALID, "tool_error", "Tool error: ", "validation"),
    SuffixRefused: ErrorKind(
        422,
        "suffix not supported",
        _INVALID,
        "unsupported_parameter",
        "Suffix is not supported and can be achieved by preprocessing the prompt.",
        "validation",
    ),
    TooManyPrompts: ErrorKind(422, "batch size exceeded", _INVALID, "batch_size_exceeded", "", "validation"),
    NotHealthy: ErrorKind(503, "healthcheck", _SERVER, "unhealthy", "unhealthy"),
    WrongKey: ErrorKind(401, "empty", _INVALID, "invalid_api_key", "Incorrect API key provided."),
    UnknownPath: ErrorKind(404, "empty", _INVALID, "unknown_url"),
    UnknownModel: ErrorKind(404, "not_found", _INVALID, "model_not_found"),
    WrongMethod: ErrorKind(405, "empty", _INVALID, "method_not_allowed"),
    BadSyntax: ErrorKind(400, "text", _INVALID, None, "Failed to parse the request body as JSON: "),
    WrongMediaType: ErrorKind(415, "text", _INVALID, None, "Expected request with `Content-Type: application/json`"),
    WrongShape: ErrorKind(422, "text", _INVALID, None, "Failed to deserialize the JSON body into the target type: "),
    BodyTooLarge: ErrorKind(413, "text", _INVALID, None, "Failed to buffer the request body: length limit exceeded"),
    BodyTooSlow: ErrorKind(408, "text", _INVALID, None, "The request body did not arrive in time", closes=True),
    HeadersTooLarge: ErrorKind(431, "text", _INVALID, None, "The request headers are too large"),
    AmbiguousHead: ErrorKind(400, "text", _INVALID, None, "The request cannot be read with certainty: ", closes=True),
    HTTPError: ErrorKind(400, "refused", _INVALID),
    InternalError: ErrorKind(500, "internal", _SERVER, "internal_error", "Internal server error", "internal"),
}


def tgi_body(error: RequestError) -> dict[str, object]:
    """`error` and `error_type`, as TGI's clients read them."""
    return {"error": str(error), "error_type": error.kind.tgi}


def openai_body(error: RequestError) -> dict[str, object]:
    """The `error` object of OpenAI's API."""
    kind = error.kind
    return {"error": {"message": str(error), "type": kind.openai, "param": error.param, "code": kind.code}}


def is_openai(path: str) -> bool:
    """Whether errors under this path take OpenAI's shape."""
    return path.startswith("/v1/")


def render(error: RequestError, path: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error response."""
    kind = error.kind
    if is_openai(path):
        content_type, body = b"application/json", orjson.dumps(openai_body(error))
    elif kind.tgi == "empty":
        content_type, body = b"", b""
    elif kind.tgi == "text":
        content_type, body = b"text/plain; charset=utf-8", str(error).encode()
    else:
        content_type, body = b"application/json", orjson.dumps(tgi_body(error))
    headers = [(b"content-length", b"%d" % len(body))]
    if content_type:
        headers.append((b"content-type", content_type))
    if error.retry_after_s is not None:
        headers += [(b"retry-after", b"%d" % error.retry_after_s), (b"x-should-retry", b"true")]
    if kind.closes:
        headers.append((b"connection", b"close"))
    if isinstance(error, WrongMethod):
        headers.append((b"allow", error.allow.encode()))
    if kind.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return kind.status, headers, body


async def refuse(error: RequestError, scope: Scope, send: Send) -> None:
    """Answer a request with an error in the shape of its path."""
    status, headers, body = render(error, scope["path"])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
