"""What `/v1/chat/completions`, `/v1/completions` and `/v1/models` answer."""

from __future__ import annotations

from typing import Literal

from tgi_server.schemas.base import Answer

FinishReason = Literal["stop", "length"]


class PromptTokensDetails(Answer):
    """Where the tokens of the prompt came from."""

    cached_tokens: int


class Usage(Answer):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(Answer):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token and what could have stood in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """The tokens of a message."""

    content: list[TokenLogprob]


class AssistantMessage(Answer):
    """What the model says."""

    role: Literal["assistant"]
    content: str


class ChatChoice(Answer):
    """One answer to a conversation."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Head(Answer):
    """The fields that every answer and every chunk of it begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Head):
    """Answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class Delta(Answer):
    """What a chunk adds to the message."""

    role: Literal["assistant"]
    content: str
    tool_calls: None


class ChatChunkChoice(Answer):
    """What a chunk adds to one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Head):
    """An event of a streamed chat; the one with `usage` has no choices."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None


class CompletionLogprobs(Answer):
    """Four lists, an entry per token in each."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One continuation of one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(Head):
    """Continuations of prompts."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Answer):
    """What a chunk adds to one continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(Head):
    """An event of a streamed completion; the one with `usage` has no choices."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | None


class ModelCard(Answer):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    """The models that are served."""

    object: Literal["list"]
    data: list[ModelCard]
