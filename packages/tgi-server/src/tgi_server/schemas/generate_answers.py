"""What `/`, `/generate`, `/generate_stream`, `/tokenize` and `/chat_tokenize` answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, RootModel

from tgi_server.schemas.base import Answer

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class PrefillToken(Answer):
    """A token of the prompt."""

    id: int
    text: str
    logprob: float | None


class GeneratedToken(Answer):
    """A token of the answer."""

    id: int
    text: str
    logprob: float
    special: bool


class BestOfSequence(Answer):
    """One of the sequences of `best_of` that were not the best."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[GeneratedToken]] = Field(default_factory=list)


class Details(Answer):
    """How an answer came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[GeneratedToken]] = Field(default_factory=list)
    best_of_sequences: list[BestOfSequence] = Field(default_factory=list)


class GenerateResponse(Answer):
    """A completed prompt."""

    generated_text: str
    details: Details | None = None


class CompatGenerateResponse(RootModel[list[GenerateResponse]]):
    """A completed prompt, in a list."""


class StreamDetails(Answer):
    """How a streamed answer came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(Answer):
    """An event: one token; the last one has the whole text."""

    index: int
    token: GeneratedToken
    top_tokens: list[GeneratedToken] = Field(default_factory=list)
    generated_text: str | None
    details: StreamDetails | None


class Span(Answer):
    """A token and the bytes of the text that it stands for."""

    id: int
    text: str
    start: int
    stop: int


class TokenizeResponse(RootModel[list[Span]]):
    """The tokens of a text."""


class ChatTokenizeResponse(Answer):
    """A templated conversation and its tokens."""

    tokenize_response: list[Span]
    templated_text: str
