"""`/v1/completions`: OpenAI's text completions, for several prompts at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tgi_server import openai_fields as openai
from tgi_server.answers import collect_all, leave_with, stream_events, stream_headers, timing_headers
from tgi_server.errors import InvalidInput, SuffixRefused, TooManyPrompts, WrongShape
from tgi_server.exchange import DONE, Exchange, event
from tgi_server.fan_in import Render, send_interleaved
from tgi_server.generation import Generation, Token
from tgi_server.routes.endpoint import GENERATION_ERRORS, Endpoint
from tgi_server.schemas.openai import CompletionRequest
from tgi_server.schemas.openai_answers import Completion, CompletionChunk
from tgi_server.service import Service
from tgi_server.validation import Wishes

Prompt = str | list[int]


async def completions(service: Service, exchange: Exchange) -> None:
    """Continue prompts, as JSON or as a stream."""
    request = await exchange.read(CompletionRequest)
    service.require_ready()
    prompts = _prompts(service, request)
    count = openai.choices_wanted(service, request.n)
    _check(service, request, count)
    with service.permits(len(prompts) * count):
        all_wishes = [_wishes(request, prompt, choice) for prompt in prompts for choice in range(count)]
        generations = await service.start_all(all_wishes, include_stop=False)
        leave_with(exchange, generations)
        if request.stream:
            await _stream(service, exchange, request, generations, count)
        else:
            await _answer(service, exchange, request, generations, count)


def _prompts(service: Service, request: CompletionRequest) -> list[Prompt]:
    given = request.prompt
    if not given and isinstance(given, list):
        raise WrongShape("prompt: Empty array detected. Do not use an empty array for the prompt.", param="prompt")
    prompts: list[Prompt] = []
    if isinstance(given, str):
        prompts.append(given)
    elif isinstance(given[0], int):
        prompts.append([i for i in given if isinstance(i, int)])
    else:
        prompts += [prompt for prompt in given if not isinstance(prompt, int)]
    most = service.settings.max_client_batch_size
    if len(prompts) > most:
        raise TooManyPrompts(f"Number of prompts exceeds the maximum allowed batch size of {most}", param="prompt")
    return prompts


def _check(service: Service, request: CompletionRequest, count: int) -> None:
    if request.suffix is not None:
        raise SuffixRefused(param="suffix")
    if request.best_of not in (None, 1, count):
        raise InvalidInput("`best_of` must equal `n`", param="best_of")
    if request.max_tokens == 0 and not (request.echo and not request.stream):
        raise InvalidInput("`max_tokens` must be strictly positive unless `echo` is set", param="max_tokens")
    if request.echo and request.logprobs is not None and service.is_encoder_decoder:
        raise InvalidInput(
            "`echo` with `logprobs` is not possible: this model's prompt goes into an encoder, "
            "which gives it no log-probabilities",
            param="echo",
        )


def _wishes(request: CompletionRequest, prompt: Prompt, choice: int) -> Wishes:
    asked = openai.wishes(
        request,
        prompt,
        choice=choice,
        add_special_tokens=True,
        top_n_tokens=request.logprobs,
        max_new_tokens=1 if request.max_tokens == 0 else request.max_tokens,
        prompt_logprobs=bool(request.echo) and request.logprobs is not None,
    )
    return replace(asked, logprobs=request.logprobs is not None)


async def _answer(
    service: Service, exchange: Exchange, request: CompletionRequest, generations: list[Generation], count: int
) -> None:
    answers = await collect_all(service, exchange, generations)
    content = openai.head(service, "text_completion", "cmpl", request.model)
    content["choices"] = [
        _choice(service, request, index, generation, tokens) for index, (generation, tokens) in enumerate(answers)
    ]
    completions = [] if request.max_tokens == 0 else generations
    content["usage"] = openai.usage(completions, generations[::count])
    await exchange.reply(content, timing_headers(service, generations[::count], compute_time=False))


def _choice(
    service: Service, request: CompletionRequest, index: int, generation: Generation, tokens: list[Token]
) -> dict[str, Any]:
    text = generation.text
    if request.max_tokens == 0:
        text, tokens = "", []
    before = _prompt_text(service, generation) if request.echo else ""
    logprobs = None
    if request.logprobs is not None:
        table = _LogprobTable([], [], [], [])
        if request.echo:
            prompt_ids = generation.prepared.prompt_ids
            for token_id, logprob in zip(prompt_ids, generation.prompt_logprobs, strict=False):
                table.add(service.token_text(token_id), logprob, None)
        _add_tokens(service, table, tokens)
        logprobs = table.as_dict()
    reason = openai.FINISH_REASONS[generation.finish_reason]
    return {"index": index, "text": before + text, "logprobs": logprobs, "finish_reason": reason}


def _prompt_text(service: Service, generation: Generation) -> str:
    return service.tokenizer.decode(generation.prepared.prompt_ids, skip_special_tokens=True)


@dataclass(slots=True)
class _LogprobTable:
    """The four parallel lists of OpenAI's legacy `logprobs`."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    offset: int = 0

    def add(self, text: str, logprob: float | None, top: dict[str, float] | None) -> None:
        self.tokens.append(text)
        self.token_logprobs.append(logprob)
        self.top_logprobs.append(top)
        self.text_offset.append(self.offset)
        self.offset += len(text)

    def as_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


def _add_tokens(service: Service, table: _LogprobTable, tokens: list[Token]) -> None:
    for token in tokens:
        top = {service.token_text(t.id): t.logprob for t in token.top}
        text = service.token_text(token.id)
        table.add(text, token.logprob, {**top, text: token.logprob})


async def _stream(
    service: Service, exchange: Exchange, request: CompletionRequest, generations: list[Generation], count: int
) -> None:
    head = openai.head(service, "text_completion", "cmpl", request.model)
    renders = [_render(service, request, head, index, generation) for index, generation in enumerate(generations)]

    async def send_all() -> None:
        if request.echo:
            echoes = [_echo(service, head, index, generation) for index, generation in enumerate(generations)]
            await exchange.send_events(b"".join(echoes))
        await send_interleaved(service, exchange, generations, renders)
        if request.stream_options is not None and request.stream_options.include_usage:
            totals = openai.usage(generations, generations[::count])
            await exchange.send_events(event({**head, "choices": [], "usage": totals}))

    headers = stream_headers(service, sum(generation.prepared.characters for generation in generations[::count]))
    await stream_events(service, exchange, headers, send_all, openai.error_event, DONE)


def _echo(service: Service, head: dict[str, Any], index: int, generation: Generation) -> bytes:
    text = _prompt_text(service, generation)
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
    return event({**head, "choices": [choice], "usage": None})


def _render(
    service: Service, request: CompletionRequest, head: dict[str, Any], index: int, generation: Generation
) -> Render:
    choice: dict[str, Any] = {"index": index}
    chunk = {**head, "choices": [choice], "usage": None}
    offsets = _LogprobTable([], [], [], [])

    def render(token: Token, is_last: bool) -> bytes:
        if not token.text and not is_last and request.logprobs is None:
            return b""  # held back, because it may be part of a character or of a stop string
        choice["text"] = token.text
        choice["logprobs"] = None
        if request.logprobs is not None:
            table = _LogprobTable([], [], [], [], offsets.offset)
            _add_tokens(service, table, [token])
            offsets.offset = table.offset
            choice["logprobs"] = table.as_dict()
        choice["finish_reason"] = openai.FINISH_REASONS[generation.finish_reason] if is_last else None
        return event(chunk)

    return render


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/completions",
        handler=completions,
        summary="Continue one or several prompts",
        body=CompletionRequest,
        answer=Completion,
        event=CompletionChunk,
        errors=(*GENERATION_ERRORS, SuffixRefused, TooManyPrompts),
    ),
)
