"""`/v1/chat/completions`: OpenAI's chat API."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgi_server import openai_fields as openai
from tgi_server.answers import collect_all, leave_with, stream_events, stream_headers, timing_headers
from tgi_server.chat import prompt_of
from tgi_server.errors import InvalidInput, TemplateFailed, ToolsRefused
from tgi_server.exchange import DONE, Exchange, event
from tgi_server.fan_in import Render, send_interleaved
from tgi_server.generation import Generation, Token
from tgi_server.routes.endpoint import GENERATION_ERRORS, Endpoint
from tgi_server.schemas.openai import ChatRequest
from tgi_server.schemas.openai_answers import ChatCompletion, ChatCompletionChunk
from tgi_server.service import Service
from tgi_server.validation import Wishes


async def chat_completions(service: Service, exchange: Exchange) -> None:
    """Answer a conversation, as JSON or as a stream."""
    request = await exchange.read(ChatRequest)
    service.require_ready()
    _check(request)
    count = openai.choices_wanted(service, request.n)
    prompt = await prompt_of(service, request)
    with service.permits(count):
        all_wishes = [_wishes(request, prompt, choice) for choice in range(count)]
        generations = await service.start_all(all_wishes, include_stop=False)
        leave_with(exchange, generations)
        if request.stream:
            await _stream(service, exchange, request, generations)
        else:
            await _answer(service, exchange, request, generations)


def _check(request: ChatRequest) -> None:
    if request.max_tokens is not None and request.max_completion_tokens not in (None, request.max_tokens):
        raise InvalidInput("give `max_tokens` or `max_completion_tokens`, not both", param="max_tokens")
    if request.response_format is not None and request.response_format.get("type") != "text":
        raise InvalidInput("grammar is not supported", param="response_format")


def _wishes(request: ChatRequest, prompt: str, choice: int) -> Wishes:
    wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    asked = openai.wishes(
        request,
        prompt,
        choice=choice,
        add_special_tokens=False,
        top_n_tokens=request.top_logprobs,
        max_new_tokens=wanted,
    )
    return replace(asked, logprobs=bool(request.logprobs))


async def _answer(service: Service, exchange: Exchange, request: ChatRequest, generations: list[Generation]) -> None:
    answers = await collect_all(service, exchange, generations)
    content = openai.head(service, "chat.completion", "chatcmpl", request.model)
    content["choices"] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": generation.text},
            "logprobs": {"content": _logprobs(service, tokens)} if request.logprobs else None,
            "finish_reason": openai.FINISH_REASONS[generation.finish_reason],
        }
        for index, (generation, tokens) in enumerate(answers)
    ]
    content["usage"] = openai.usage(generations, generations[:1])
    await exchange.reply(content, timing_headers(service, generations[:1]))


async def _stream(service: Service, exchange: Exchange, request: ChatRequest, generations: list[Generation]) -> None:
    head = openai.head(service, "chat.completion.chunk", "chatcmpl", request.model)
    renders = [_render(service, request, head, index, generation) for index, generation in enumerate(generations)]

    async def send_all() -> None:
        await send_interleaved(service, exchange, generations, renders)
        if request.stream_options is not None and request.stream_options.include_usage:
            totals = openai.usage(generations, generations[:1])
            await exchange.send_events(event({**head, "choices": [], "usage": totals}))

    headers = stream_headers(service, generations[0].prepared.characters)
    await stream_events(service, exchange, headers, send_all, openai.error_event, DONE)


def _render(service: Service, request: ChatRequest, head: dict[str, Any], index: int, generation: Generation) -> Render:
    choice: dict[str, Any] = {"index": index}
    chunk = {**head, "choices": [choice], "usage": None}

    def render(token: Token, is_last: bool) -> bytes:
        if not token.text and not is_last and not request.logprobs:
            return b""  # held back, because it may be part of a character or of a stop string
        # tool_calls is null because `text-generation`, TGI's own client, cannot do without the field
        choice["delta"] = {"role": "assistant", "content": token.text, "tool_calls": None}
        choice["logprobs"] = {"content": _logprobs(service, [token])} if request.logprobs else None
        choice["finish_reason"] = openai.FINISH_REASONS[generation.finish_reason] if is_last else None
        return event(chunk)

    return render


def _logprobs(service: Service, tokens: list[Token]) -> list[dict[str, Any]]:
    return [
        {
            **_logprob(service, token.id, token.logprob),
            "top_logprobs": [_logprob(service, top.id, top.logprob) for top in token.top],
        }
        for token in tokens
    ]


def _logprob(service: Service, token_id: int, logprob: float) -> dict[str, Any]:
    return {"token": service.token_text(token_id), "logprob": logprob, "bytes": service.token_bytes(token_id)}


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        handler=chat_completions,
        summary="Answer a conversation",
        body=ChatRequest,
        answer=ChatCompletion,
        event=ChatCompletionChunk,
        errors=(*GENERATION_ERRORS, TemplateFailed, ToolsRefused),
    ),
)
