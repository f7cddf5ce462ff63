"""`/tokenize` and `/chat_tokenize`: what the tokenizer makes of a prompt."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from tgi_core.errors import TGIError
from tgi_server.chat import prompt_of
from tgi_server.errors import InvalidInput, TemplateFailed, ToolsRefused, Unavailable
from tgi_server.exchange import Exchange
from tgi_server.routes.endpoint import Endpoint
from tgi_server.schemas.generate import GenerateRequest
from tgi_server.schemas.generate_answers import ChatTokenizeResponse, TokenizeResponse
from tgi_server.schemas.openai import ChatRequest
from tgi_server.service import Service


async def tokenize(service: Service, exchange: Exchange) -> None:
    """Ids, texts and byte offsets of a prompt."""
    request = await exchange.read(GenerateRequest)
    if not request.inputs:
        raise InvalidInput("`inputs` cannot be empty")
    await exchange.reply(await _spans(service, request.inputs, add_special_tokens=True))


async def chat_tokenize(service: Service, exchange: Exchange) -> None:
    """The templated conversation and its tokens."""
    request = await exchange.read(ChatRequest)
    prompt = await prompt_of(service, request)
    spans = await _spans(service, prompt, add_special_tokens=False)
    await exchange.reply({"tokenize_response": spans, "templated_text": prompt})


async def _spans(service: Service, text: str, *, add_special_tokens: bool) -> list[dict[str, Any]]:
    encode = partial(service.tokenizer.encode_with_offsets, text, add_special_tokens=add_special_tokens)
    try:
        spans = await asyncio.get_running_loop().run_in_executor(service.pool, encode)
    except TGIError as error:
        raise InvalidInput(f"tokenizer error {error}") from error
    return [{"id": span.id, "text": span.text, "start": span.start, "stop": span.stop} for span in spans]


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/tokenize",
        handler=tokenize,
        summary="Tokenize a prompt",
        body=GenerateRequest,
        answer=TokenizeResponse,
        errors=(InvalidInput, Unavailable),
        is_counted=False,
    ),
    Endpoint(
        method="POST",
        path="/chat_tokenize",
        handler=chat_tokenize,
        summary="Template and tokenize a conversation",
        body=ChatRequest,
        answer=ChatTokenizeResponse,
        errors=(InvalidInput, TemplateFailed, ToolsRefused, Unavailable),
    ),
)
