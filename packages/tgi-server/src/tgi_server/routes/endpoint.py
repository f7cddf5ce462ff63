"""One row of the route table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from tgi_server.errors import (
    GenerationFailed,
    IncompleteGeneration,
    InvalidInput,
    Overloaded,
    RequestError,
    Unavailable,
)
from tgi_server.exchange import Exchange
from tgi_server.schemas.base import Body
from tgi_server.service import Service

Handler = Callable[[Service, Exchange], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A method and path, who answers it, who may ask, and what goes in and out."""

    method: str
    path: str
    handler: Handler
    summary: str
    is_open: bool = False  #: answered without the API key
    is_counted: bool = True  #: in tgi_request_count, if it has a body
    is_documented: bool = True  #: in the OpenAPI document
    body: type[Body] | None = None
    answer: type[BaseModel] | None = None  #: JSON of status 200
    also: Mapping[int, type[BaseModel]] = field(default_factory=dict)  #: JSON of other statuses, no errors
    event: type[BaseModel] | None = None  #: JSON of an event, if the route can stream
    text: str = ""  #: content type of an answer that is not JSON
    errors: tuple[type[RequestError], ...] = ()  #: beyond those that any route, or any with a body, can give


GENERATION_ERRORS: tuple[type[RequestError], ...] = (
    InvalidInput,
    Overloaded,
    GenerationFailed,
    Unavailable,
    IncompleteGeneration,
)
