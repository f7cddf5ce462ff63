"""The ASGI application: guards around a router around the route table."""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from tgi_server.errors import ClientGone, InternalError, RequestError, UnknownPath, WrongMethod, render
from tgi_server.exchange import Exchange
from tgi_server.guards import ApiKey, RequestLimits, refuse
from tgi_server.routes import ENDPOINTS
from tgi_server.routes.endpoint import Endpoint
from tgi_server.service import Service
from tgi_server.settings import Settings

log = structlog.get_logger("tgi.http")


class EndpointApp:
    """Runs one endpoint and turns its errors into answers."""

    def __init__(self, endpoint: Endpoint, service: Service) -> None:
        self._endpoint = endpoint
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service, endpoint = self._service, self._endpoint
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
        finally:
            exchange.close()
            service.exchanges.discard(exchange)


class ErrorBoundary:
    """The last resort: unknown paths and methods, and defects, which the log shows and the client does not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error if the application raises before it answers."""
        is_started = False

        async def note_start(message: dict[str, object]) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, note_start)  # type: ignore[arg-type]
        except HTTPException as error:
            await self._refuse_method(error, scope, send)
        except RequestError as error:
            await refuse(error, scope, send)
        except Exception:
            log.exception("Defect", path=scope.get("path"))
            if is_started:
                raise
            await refuse(InternalError(), scope, send)

    async def _refuse_method(self, error: HTTPException, scope: Scope, send: Send) -> None:
        status, headers, body = render(WrongMethod(f"{scope['method']} is not allowed here"), scope["path"])
        allow = (error.headers or {}).get("Allow", "")
        headers.append((b"allow", allow.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await refuse(UnknownPath(f"Unknown path {scope['path']}"), scope, send)


def create_app(
    settings: Settings,
    service: Service,
    *,
    more_routes: Iterable[BaseRoute] = (),
    more_middleware: Iterable[Middleware] = (),
) -> ASGIApp:
    """Build the application; the outermost layer is written last."""
    routes: list[BaseRoute] = [*_routes(service), *more_routes]
    app: ASGIApp = _HideStarletteApp(Router(routes, redirect_slashes=False, default=_not_found))
    app = ErrorBoundary(app)
    for middleware in more_middleware:
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


class _HideStarletteApp:
    """Makes the router raise on a wrong method, instead of answering in its own words."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self._router(scope, receive, send)


def _routes(service: Service) -> list[Route]:
    """One route per path; Starlette answers 405 for methods that none of its endpoints has."""
    by_path: dict[str, dict[str, EndpointApp]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = EndpointApp(endpoint, service)
    return [Route(path, _by_method(apps), methods=list(apps)) for path, apps in by_path.items()]


def _by_method(apps: dict[str, EndpointApp]) -> ASGIApp:
    class ByMethod:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await apps[method](scope, receive, send)

    return ByMethod()


_OPEN = {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS if endpoint.is_open}


def _is_open(method: str, path: str) -> bool:
    """Exact paths only: no other spelling of a path reaches a route either."""
    method = "GET" if method == "HEAD" else method
    return (method, path) in _OPEN or (method == "GET" and path.startswith("/v1/models/"))
