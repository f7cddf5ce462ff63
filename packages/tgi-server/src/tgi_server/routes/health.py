"""Health: whether the process lives, whether it can serve, and TGI's and SageMaker's questions for the latter."""

from __future__ import annotations

from tgi_server.errors import NotHealthy
from tgi_server.exchange import Exchange
from tgi_server.routes.endpoint import Endpoint
from tgi_server.schemas.server_answers import Readiness
from tgi_server.service import Service


async def livez(service: Service, exchange: Exchange) -> None:
    """200 while the event loop runs, also while loading."""
    await exchange.reply_bytes(b"", [])


async def readyz(service: Service, exchange: Exchange) -> None:
    """200 when requests are welcome; the body says what is going on."""
    state = service.state
    loading = service.supervisor.loading
    content: dict[str, object] = {"state": state}
    if state == "loading":
        content |= {"phase": loading.phase, "percent": round(100 * loading.fraction), "detail": loading.detail}
    if state in ("frozen", "stuck"):
        content["heartbeat_age_s"] = round(service.supervisor.heartbeat_age_s, 1)
        content["step_age_s"] = round(service.supervisor.step_age_s, 1)
    await exchange.reply(content, status=200 if state == "ready" else 503)


async def health(service: Service, exchange: Exchange) -> None:
    """200 with an empty body, or 503 with TGI's error."""
    if service.state != "ready":
        raise NotHealthy
    await exchange.reply_bytes(b"", [])


ENDPOINTS = (
    *(
        Endpoint(
            method="GET",
            path=path,
            handler=health,
            summary="Whether the model can serve",
            is_open=True,
            errors=(NotHealthy,),
        )
        for path in ("/", "/health", "/ping")
    ),
    Endpoint(method="GET", path="/livez", handler=livez, summary="Whether the process lives", is_open=True),
    Endpoint(
        method="GET",
        path="/readyz",
        handler=readyz,
        summary="Whether, and if not why",
        is_open=True,
        answer=Readiness,
        also={503: Readiness},
    ),
)
