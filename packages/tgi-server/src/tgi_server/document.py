"""The OpenAPI document: the route table and the schemas, as FastAPI describes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from inspect import Parameter, Signature
from typing import Any

from fastapi import Security
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from tgi_server import __version__
from tgi_server.errors import (
    KINDS,
    AmbiguousHead,
    BadSyntax,
    BodyTooLarge,
    BodyTooSlow,
    HeadersTooLarge,
    InternalError,
    RequestError,
    WrongKey,
    WrongMediaType,
    WrongShape,
    is_openai,
    openai_body,
    tgi_body,
)
from tgi_server.routes.endpoint import Endpoint
from tgi_server.schemas.server_answers import ErrorResponse, OpenAIErrorResponse

TITLE = "Text Generation Inference"
SCHEMA_PATH = "#/components/schemas/{model}"
BODY_ERRORS: tuple[type[RequestError], ...] = (BadSyntax, BodyTooSlow, BodyTooLarge, WrongMediaType, WrongShape)

_api_key = HTTPBearer(scheme_name="API key", description="Needed if the server was started with `--api-key`.")


class EventStream(Response):
    """The kind of an answer that is only ever a stream."""

    media_type = "text/event-stream"


class EndpointRoute(APIRoute):
    """An endpoint that FastAPI routes and describes; `app` answers it, reading and writing by itself."""

    def __init__(self, endpoint: Endpoint, app: ASGIApp) -> None:
        self.event = endpoint.event
        super().__init__(
            endpoint.path,
            _described(endpoint),
            methods=[endpoint.method],
            summary=endpoint.summary,
            description=endpoint.handler.__doc__,
            response_class=_response_class(endpoint),
            response_model=endpoint.answer,
            responses={**_streamed(endpoint), **_also(endpoint), **_errors(endpoint)},
            dependencies=() if endpoint.is_open else [Security(_api_key)],
            include_in_schema=endpoint.is_documented,
            openapi_extra=_path_parameters(endpoint),
        )
        self.app = app


def openapi_document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document of these routes."""
    document = get_openapi(title=TITLE, version=__version__, routes=routes)
    events = {route.event for route in routes if isinstance(route, EndpointRoute) and route.event}
    ordered = sorted(events, key=lambda event: event.__name__)
    _, schemas = models_json_schema([(event, "serialization") for event in ordered], ref_template=SCHEMA_PATH)
    document["components"]["schemas"] |= schemas.get("$defs", {})
    return document


def _described(endpoint: Endpoint) -> Callable[..., None]:
    """A function whose parameter FastAPI describes as the body."""
    parameters = []
    if endpoint.body is not None:
        parameters.append(Parameter("body", Parameter.KEYWORD_ONLY, annotation=endpoint.body))

    def described() -> None: ...

    described.__name__ = endpoint.handler.__name__
    described.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return described


def _path_parameters(endpoint: Endpoint) -> dict[str, Any] | None:
    """Any text will do for them, so there is no status 422, which FastAPI would describe."""
    names = re.findall(r"{(\w+)", endpoint.path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    return {"parameters": parameters} if parameters else None


def _response_class(endpoint: Endpoint) -> type[Response]:
    if endpoint.answer is not None:
        return JSONResponse
    if endpoint.event is not None:
        return EventStream
    return PlainTextResponse if endpoint.text else Response


def _streamed(endpoint: Endpoint) -> dict[int | str, dict[str, Any]]:
    if endpoint.event is None:
        return {}
    schema = {"$ref": SCHEMA_PATH.format(model=endpoint.event.__name__)}
    return {200: {"content": {EventStream.media_type: {"schema": schema}}}}


def _also(endpoint: Endpoint) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": model} for status, model in endpoint.also.items()}


def _errors(endpoint: Endpoint) -> dict[int | str, dict[str, Any]]:
    """Error answers by status, with an example of each kind."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in _errors_of(endpoint):
        kind = KINDS[error]
        response = by_status.setdefault(kind.status, {"description": ""})
        meaning = (error.__doc__ or "").strip()
        response["description"] = f"{response['description']}  {meaning}".strip()
        if is_openai(endpoint.path):
            _add_example(response, "application/json", error.__name__, openai_body(error()))
            response["model"] = OpenAIErrorResponse
        elif kind.tgi == "text":
            _add_example(response, "text/plain", error.__name__, str(error()))
            response["content"]["text/plain"]["schema"] = {"type": "string"}
        elif kind.tgi != "empty":
            _add_example(response, "application/json", error.__name__, tgi_body(error()))
            response["model"] = ErrorResponse
    return by_status


def _errors_of(endpoint: Endpoint) -> Iterator[type[RequestError]]:
    yield from endpoint.errors
    if endpoint.body is not None:
        yield from BODY_ERRORS
    if not endpoint.is_open:
        yield WrongKey
    yield AmbiguousHead
    yield HeadersTooLarge
    yield InternalError


def _add_example(response: dict[str, Any], media_type: str, name: str, value: object) -> None:
    content = response.setdefault("content", {}).setdefault(media_type, {})
    content.setdefault("examples", {})[name] = {"value": value}
