"""`/info`, `/metrics` and `/v1/models`."""

from __future__ import annotations

from tgi_server import CONTRACT_VERSION
from tgi_server.errors import Unavailable, UnknownModel
from tgi_server.exchange import Exchange
from tgi_server.metrics import CONTENT_TYPE
from tgi_server.routes.endpoint import Endpoint
from tgi_server.schemas.openai_answers import ModelCard, ModelList
from tgi_server.schemas.server_answers import Info
from tgi_server.service import POOL_THREADS, Service


async def info(service: Service, exchange: Exchange) -> None:
    """The model and the limits, in TGI's fields and order; then what runs the model."""
    engine, settings = service.info, service.settings
    await exchange.reply(
        {
            "model_id": service.model_id,
            "model_sha": service.files.sha if service.files else None,
            "model_pipeline_tag": None,
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_best_of": settings.max_best_of,
            "max_stop_sequences": settings.max_stop_sequences,
            "max_input_tokens": engine.max_input_tokens,
            "max_total_tokens": engine.max_total_tokens,
            "validation_workers": POOL_THREADS,
            "max_client_batch_size": settings.max_client_batch_size,
            "router": "text-generation-router",
            "version": CONTRACT_VERSION,
            "sha": None,
            "docker_label": None,
            "model_dtype": engine.dtype,
            "model_device_type": engine.device,
            "custom_kernels": engine.custom_kernels,
            "fallback": engine.fallback or None,
            "num_shard": engine.num_shard,
            "deterministic": engine.deterministic,
            "kv_cache_dtype": engine.kv_cache_dtype or engine.dtype,
        }
    )


async def metrics(service: Service, exchange: Exchange) -> None:
    """Prometheus text."""
    await exchange.reply_bytes(service.metrics.render(), [(b"content-type", CONTENT_TYPE)])


async def models(service: Service, exchange: Exchange) -> None:
    """The one model that is served."""
    await exchange.reply({"object": "list", "data": [_model(service)]})


async def model(service: Service, exchange: Exchange) -> None:
    """One model by its id."""
    wanted = exchange.scope["path_params"]["model_id"]
    if wanted != service.model_id:
        raise UnknownModel(f"The model `{wanted}` does not exist", param="model")
    await exchange.reply(_model(service))


def _model(service: Service) -> dict[str, object]:
    name = service.model_id or service.info.model_id
    return {"id": name, "object": "model", "created": 0, "owned_by": name}


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/info",
        handler=info,
        summary="Model and limits",
        is_open=True,
        answer=Info,
        errors=(Unavailable,),
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        handler=metrics,
        summary="Prometheus metrics",
        is_open=True,
        text=CONTENT_TYPE.decode(),
    ),
    Endpoint(
        method="GET",
        path="/v1/models",
        handler=models,
        summary="The model served",
        is_open=True,
        answer=ModelList,
        errors=(Unavailable,),
    ),
    Endpoint(
        method="GET",
        path="/v1/models/{model_id:path}",
        handler=model,
        summary="One model",
        is_open=True,
        answer=ModelCard,
        errors=(UnknownModel, Unavailable),
    ),
)
