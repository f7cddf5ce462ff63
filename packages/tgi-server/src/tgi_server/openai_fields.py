"""How the sampling fields of OpenAI's API become wishes, and what its answers share."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from tgi_server import __version__
from tgi_server.errors import InvalidInput, RequestError, openai_body
from tgi_server.exchange import event
from tgi_server.generation import Generation
from tgi_server.schemas.openai import SamplingFields
from tgi_server.service import Service
from tgi_server.validation import Wishes

FINISH_REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


def wishes(
    request: SamplingFields,
    inputs: str | list[int],
    *,
    choice: int,
    add_special_tokens: bool,
    top_n_tokens: int | None,
    max_new_tokens: int | None,
    prompt_logprobs: bool = False,
) -> Wishes:
    """The wishes for one choice; a seed is shifted by the choice's number, so that choices differ.

    Raises:
        InvalidInput: a field that `Wishes` cannot express.
    """
    stop = request.stop
    seed = None if request.seed is None else (request.seed + choice) % 2**64
    return Wishes(
        inputs=inputs,
        add_special_tokens=add_special_tokens,
        temperature=request.temperature or None,
        do_sample=request.temperature != 0,
        repetition_penalty=request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        top_k=None if request.top_k in (0, -1) else request.top_k,
        top_p=None if request.top_p == 1 else request.top_p,
        min_p=request.min_p,
        max_new_tokens=max_new_tokens,
        min_new_tokens=request.min_tokens or 0,
        ignore_eos=request.ignore_eos,
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        logit_bias=_logit_bias(request.logit_bias),
        seed=seed,
        top_n_tokens=top_n_tokens,
        prompt_logprobs=prompt_logprobs,
        cache_salt=request.cache_salt or "",
        extra=request.extra,
    )


def _logit_bias(bias: dict[str, float] | list[float] | None) -> dict[int, float]:
    if bias is None:
        return {}
    if isinstance(bias, list):
        raise InvalidInput("`logit_bias` must be an object of token ids and biases", param="logit_bias")
    if any(not key.isdecimal() or len(key) > 10 for key in bias):
        raise InvalidInput("`logit_bias` keys must be token ids", param="logit_bias")
    return {int(key): value for key, value in bias.items()}


def choices_wanted(service: Service, n: int | None) -> int:
    """`n`, checked.

    Raises:
        InvalidInput: less than 1 or more than the server allows.
    """
    count = 1 if n is None else n
    if not 0 < count <= service.settings.max_n:
        raise InvalidInput(f"`n` must be > 0 and <= {service.settings.max_n}. Given: {count}", param="n")
    return count


def head(service: Service, kind: str, prefix: str, model: str | None) -> dict[str, Any]:
    """The fields that every answer and every chunk of it begin with."""
    return {
        "object": kind,
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": service.model_id if model in (None, "", "tgi") else model,
        "system_fingerprint": f"{__version__}-native",
    }


def usage(generations: Sequence[Generation], prompts: Sequence[Generation]) -> dict[str, Any]:
    """Token counts; `prompts` are the generations whose prompts are counted, once each."""
    prompt_tokens = sum(generation.input_length for generation in prompts)
    completion_tokens = sum(generation.generated_tokens for generation in generations)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(generation.cached_tokens for generation in prompts)},
    }


def error_event(error: RequestError) -> bytes:
    """An error inside a stream: OpenAI's object, with the status that TGI's clients read."""
    body = openai_body(error)
    content = body["error"]
    if isinstance(content, dict):
        content["http_status_code"] = error.kind.status
    return event(body)
