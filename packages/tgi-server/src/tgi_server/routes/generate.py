"""`/generate`, `/generate_stream` and `/`: text-generation-inference's own API."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgi_server.answers import (
    collect_all,
    leave_with,
    send_tokens,
    stream_events,
    stream_headers,
    timing_headers,
)
from tgi_server.errors import Unavailable, tgi_body
from tgi_server.exchange import Exchange, event
from tgi_server.generation import Generation, Token
from tgi_server.routes.endpoint import GENERATION_ERRORS, Endpoint
from tgi_server.schemas.generate import CompatGenerateRequest, GenerateParameters, GenerateRequest
from tgi_server.schemas.generate_answers import CompatGenerateResponse, GenerateResponse, StreamResponse
from tgi_server.service import Service
from tgi_server.validation import Wishes, check_best_of, check_stream


async def generate(service: Service, exchange: Exchange) -> None:
    """One completion as JSON."""
    request = await exchange.read(GenerateRequest)
    await _answer(service, exchange, request, full_text=False, in_list=False)


async def generate_stream(service: Service, exchange: Exchange) -> None:
    """One completion as an event per token; once the stream has begun, an error is its last event."""
    request = await exchange.read(GenerateRequest)
    await _stream(service, exchange, request, full_text=False)


async def compat_generate(service: Service, exchange: Exchange) -> None:
    """The shape of the old Inference API: a list, or a stream if the body says so."""
    request = await exchange.read(CompatGenerateRequest)
    if request.stream:
        await _stream(service, exchange, request, full_text=True)
    else:
        await _answer(service, exchange, request, full_text=True, in_list=True)


def _wishes(service: Service, inputs: str, p: GenerateParameters) -> Wishes:
    return Wishes(
        inputs=inputs,
        best_of=p.best_of,
        temperature=p.temperature,
        repetition_penalty=p.repetition_penalty,
        frequency_penalty=p.frequency_penalty,
        top_k=p.top_k,
        top_p=p.top_p,
        typical_p=p.typical_p,
        do_sample=p.do_sample,
        max_new_tokens=p.max_new_tokens,
        stop=tuple(p.stop),
        truncate=p.truncate,
        watermark=p.watermark,
        prompt_logprobs=p.decoder_input_details
        and (service.is_encoder_decoder or service.settings.enable_prefill_logprobs),
        seed=p.seed,
        top_n_tokens=p.top_n_tokens,
        grammar=p.grammar,
        adapter_id=p.adapter_id,
        extra=p.extra,
    )


def _full_text(service: Service, request: GenerateRequest, default: bool) -> str:
    """What goes before the generated text; an encoder-decoder's does not go on from the prompt."""
    wanted = request.parameters.return_full_text
    if wanted is None:
        wanted = default and not service.is_encoder_decoder
    return request.inputs if wanted else ""


async def _answer(
    service: Service, exchange: Exchange, request: GenerateRequest, *, full_text: bool, in_list: bool
) -> None:
    parameters = request.parameters
    service.require_ready()
    check_best_of(parameters.best_of, service.validator.limits)
    count = max(1, parameters.best_of or 1)
    wishes = _wishes(service, request.inputs, parameters)
    with service.permits(count):
        generations = await service.start_all([wishes] * count, include_stop=True)
        leave_with(exchange, generations)
        answers = await collect_all(service, exchange, generations)
    answers.sort(key=lambda answer: _mean_logprob(answer[1]), reverse=True)
    best, tokens = answers[0]
    before = _full_text(service, request, full_text)
    content: dict[str, Any] = {"generated_text": before + best.text}
    if parameters.details or parameters.decoder_input_details:
        content["details"] = _details(service, best, tokens)
        if count > 1:
            content["details"]["best_of_sequences"] = [
                {"generated_text": before + other.text, **_details(service, other, its_tokens)}
                for other, its_tokens in answers[1:]
            ]
    await exchange.reply([content] if in_list else content, timing_headers(service, [best]))


def _mean_logprob(tokens: list[Token]) -> float:
    return sum(token.logprob for token in tokens) / max(1, len(tokens))


def _token(service: Service, token: Token) -> dict[str, Any]:
    text = service.token_text(token.id) if token.special else token.text
    return {"id": token.id, "text": text, "logprob": token.logprob, "special": token.special}


def _top(service: Service, token: Token) -> list[dict[str, Any]]:
    special_ids = service.tokenizer.special_ids
    return [
        {"id": t.id, "text": service.token_text(t.id), "logprob": t.logprob, "special": t.id in special_ids}
        for t in token.top
    ]


def _details(service: Service, generation: Generation, tokens: list[Token]) -> dict[str, Any]:
    prompt_ids = service.info.decoder_start_ids or generation.prepared.prompt_ids
    prompt = zip(prompt_ids, generation.prompt_logprobs, strict=False)
    details: dict[str, Any] = {
        "finish_reason": generation.finish_reason,
        "generated_tokens": generation.generated_tokens,
        "seed": generation.seed,
        "prefill": [{"id": i, "text": service.token_text(i), "logprob": logprob} for i, logprob in prompt],
        "tokens": [_token(service, token) for token in tokens],
    }
    if any(token.top for token in tokens):
        details["top_tokens"] = [_top(service, token) for token in tokens]
    return details


async def _stream(service: Service, exchange: Exchange, request: GenerateRequest, *, full_text: bool) -> None:
    """Once the server is ready the status is 200 whatever happens, as TGI does; an error is the last event."""
    service.require_ready()
    await stream_events(
        service,
        exchange,
        stream_headers(service, len(request.inputs)),
        lambda: _send_all(service, exchange, request, _full_text(service, request, full_text)),
        lambda error: event(tgi_body(error)),
    )


async def _send_all(service: Service, exchange: Exchange, request: GenerateRequest, before: str) -> None:
    check_stream(request.parameters.best_of, request.parameters.decoder_input_details)
    with service.permits(1):
        wishes = replace(_wishes(service, request.inputs, request.parameters), best_of=None)
        generation = await service.start(wishes, include_stop=True)
        leave_with(exchange, [generation])
        index = 0

        def render(token: Token, is_last: bool) -> bytes:
            nonlocal index
            index += 1
            content: dict[str, Any] = {"index": index, "token": _token(service, token)}
            if token.top:
                content["top_tokens"] = _top(service, token)
            content["generated_text"] = before + generation.text if is_last else None
            content["details"] = None
            if is_last and request.parameters.details:
                content["details"] = {
                    "finish_reason": generation.finish_reason,
                    "generated_tokens": generation.generated_tokens,
                    "seed": generation.seed,
                    "input_length": generation.input_length,
                }
            return event(content)

        await send_tokens(service, exchange, generation, render)


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/generate",
        handler=generate,
        summary="Complete a prompt",
        body=GenerateRequest,
        answer=GenerateResponse,
        errors=GENERATION_ERRORS,
    ),
    Endpoint(
        method="POST",
        path="/generate_stream",
        handler=generate_stream,
        summary="Complete a prompt, an event per token",
        body=GenerateRequest,
        event=StreamResponse,
        errors=(Unavailable,),
    ),
    Endpoint(
        method="POST",
        path="/",
        handler=compat_generate,
        summary="Complete a prompt; a list, or a stream with `stream`",
        body=CompatGenerateRequest,
        answer=CompatGenerateResponse,
        event=StreamResponse,
        errors=GENERATION_ERRORS,
    ),
)
