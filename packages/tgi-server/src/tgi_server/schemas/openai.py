"""Bodies of `/v1/chat/completions`, `/v1/completions` and `/chat_tokenize`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field

from tgi_server.schemas.base import F32, I32, U32, U64, Body, ExtensibleBody


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool = False


class TextPart(Body):
    """A piece of text of a message."""

    type: Literal["text"]
    text: str


class ImageURL(Body):
    """Where an image is."""

    url: str


class ImagePart(Body):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageURL


class Message(Body):
    """One turn of a conversation."""

    role: str
    content: str | list[TextPart | ImagePart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Function(Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, validation_alias=AliasChoices("parameters", "arguments"))


class Tool(Body):
    """A tool that the model may call."""

    type: str
    function: Function


class SamplingFields(ExtensibleBody):
    """The fields that chat and text completions share."""

    model: str | None = None
    frequency_penalty: F32 | None = None
    presence_penalty: F32 | None = None
    repetition_penalty: F32 | None = None
    logit_bias: dict[str, F32] | list[F32] | None = None
    max_tokens: U32 | None = None
    n: U32 | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    seed: I32 | U64 | None = None
    temperature: F32 | None = None
    top_p: F32 | None = None
    top_k: I32 | None = None
    min_p: F32 | None = None
    min_tokens: U32 | None = None
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = None
    cache_salt: str | None = Field(None, max_length=256)
    user: str | None = None


class ChatRequest(SamplingFields):
    """A conversation to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 40}
            ]
        }
    )

    messages: list[Message]
    max_completion_tokens: U32 | None = None
    logprobs: bool | None = False
    top_logprobs: U32 | None = None
    tools: list[Tool] | None = None
    tool_prompt: str | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(SamplingFields):
    """One or several prompts to continue."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The capital of France is", "max_tokens": 20, "temperature": 0}]}
    )

    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    echo: bool | None = False
    logprobs: U32 | None = None
    best_of: U32 | None = None
