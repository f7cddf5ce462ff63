"""The FastAPI application: guards around a router around the route table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgi_server import __version__
from tgi_server.document import TITLE, EndpointRoute, openapi_document
from tgi_server.errors import (
    ClientGone,
    HTTPError,
    InternalError,
    RequestError,
    UnknownPath,
    WrongMethod,
    WrongShape,
    refuse,
)
from tgi_server.exchange import Exchange
from tgi_server.guards import ApiKey, RequestLimits
from tgi_server.routes import ENDPOINTS
from tgi_server.routes.endpoint import Endpoint
from tgi_server.service import Service
from tgi_server.settings import Settings

log = structlog.get_logger("tgi.http")


class EndpointApp:
    """Runs one endpoint and turns its errors into answers."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service: Service = scope["app"].state.service
        endpoint = self._endpoint
        exchange = Exchange(scope, receive, send)
        service.exchanges.add(exchange)
        if endpoint.body is not None and endpoint.is_counted:
            service.metrics.request_count.inc()
        try:
            await endpoint.handler(service, exchange)
        except ClientGone as error:
            service.failed(error, exchange.path)
        except RequestError as error:
            service.failed(error, exchange.path)
            await exchange.reply_error(error)
        except Exception:
            service.failed(InternalError(), exchange.path)
            raise  # to the error boundary, which logs and answers
        finally:
            exchange.close()
            service.exchanges.discard(exchange)


class ErrorBoundary:
    """The last resort: unknown paths and methods, and defects, which the log shows and the client does not."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error if the application raises before it answers."""
        is_started = False

        async def note_start(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except RequestError as error:
            await refuse(error, scope, send)
        except HTTPException as error:
            await refuse(self._translated(error, scope), scope, send)
        except RequestValidationError as error:
            await refuse(WrongShape(str(error.errors()[0]["msg"])), scope, send)
        except Exception:
            log.exception("Defect", path=scope.get("path"))
            if is_started:
                raise
            await refuse(InternalError(), scope, send)

    def _translated(self, error: HTTPException, scope: Scope) -> RequestError:
        """What the router or a plugin's route raises, as one of our errors."""
        if error.status_code == 405:
            return WrongMethod(f"{scope['method']} is not allowed here", allow=self._allowed(scope))
        return HTTPError(error.status_code, error.detail)

    def _allowed(self, scope: Scope) -> str:
        """The methods of all routes with this path."""
        here = [route for route in self._routes if route.matches(scope)[0] is not Match.NONE]
        return ", ".join(sorted({method for route in here for method in getattr(route, "methods", None) or ()}))


class Application(FastAPI):
    """FastAPI's router and OpenAPI document, behind our guards instead of its middleware."""

    def __init__(
        self, settings: Settings, routes: Iterable[BaseRoute], more_middleware: Iterable[Middleware] = ()
    ) -> None:
        # our own routes answer with the document; FastAPI's pages would load scripts from another host
        super().__init__(
            title=TITLE, version=__version__, routes=list(routes), openapi_url=None, redirect_slashes=False
        )
        self.router.default = _unknown_path
        self._settings = settings
        self._more_middleware = more_middleware

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made when it is first asked for."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi_document(self.routes)
        return self.openapi_schema

    def build_middleware_stack(self) -> ASGIApp:
        """What requests pass through, the innermost first."""
        settings = self._settings
        app: ASGIApp = AsyncExitStackMiddleware(self.router)  # routes of plugins may use FastAPI's dependencies
        app = ErrorBoundary(app, self.routes)
        for middleware in self._more_middleware:
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        if settings.api_key is not None:
            app = ApiKey(app, key=settings.api_key.get_secret_value(), is_open=_is_open)
        app = RequestLimits(
            app,
            header_bytes=settings.max_header_bytes,
            header_fields=settings.max_header_fields,
            body_bytes=settings.payload_limit,
            body_grace_s=settings.body_timeout,
        )
        return CORSMiddleware(
            app,
            allow_origins=settings.cors_allow_origin or ("*",),
            allow_methods=("GET", "POST"),
            allow_headers=("content-type", "authorization"),
        )


async def _unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        raise UnknownPath(f"Unknown path {scope['path']}")


def create_app(
    settings: Settings,
    *,
    more_routes: Iterable[BaseRoute] = (),
    more_middleware: Iterable[Middleware] = (),
) -> Application:
    """Build the application; before it can answer, `state.service` must be set."""
    return Application(settings, [*_routes(), *more_routes], more_middleware)


def _routes() -> Iterator[BaseRoute]:
    for endpoint in ENDPOINTS:
        app = EndpointApp(endpoint)
        yield EndpointRoute(endpoint, app)
        if endpoint.method == "GET":
            yield Route(endpoint.path, app, methods=["HEAD"], include_in_schema=False)


_OPEN = {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS if endpoint.is_open}


def _is_open(method: str, path: str) -> bool:
    """Exact paths only: no other spelling of a path reaches a route either."""
    method = "GET" if method == "HEAD" else method
    return (method, path) in _OPEN or (method == "GET" and path.startswith("/v1/models/"))
