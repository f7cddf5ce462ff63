"""What `/info`, `/readyz` and errors answer."""

from __future__ import annotations

from tgi_server.schemas.base import Answer


class Info(Answer):
    """The model and the limits of the server."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None
    model_dtype: str  #: this and what follows is not TGI's
    model_device_type: str
    custom_kernels: bool  #: false with --disable-custom-kernels
    fallback: str | None  #: why the model runs on transformers' own code, null if it does not
    num_shard: int  #: ranks that hold the model
    deterministic: bool  #: whether a request's tokens do not depend on what runs beside it
    kv_cache_dtype: str  #: that keys and values are kept in


class Readiness(Answer):
    """Whether requests are welcome, and if not why."""

    state: str
    phase: str | None = None
    percent: int | None = None
    detail: str | None = None
    heartbeat_age_s: float | None = None
    step_age_s: float | None = None


class ErrorResponse(Answer):
    """An error of text-generation-inference's routes."""

    error: str
    error_type: str


class OpenAIError(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorResponse(Answer):
    """An error of OpenAI's routes."""

    error: OpenAIError
