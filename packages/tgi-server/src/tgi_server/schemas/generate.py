"""Bodies of `/`, `/generate`, `/generate_stream` and `/tokenize`."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from tgi_server.schemas.base import F32, I32, U32, U64, Body, ExtensibleBody


class GenerateParameters(ExtensibleBody):
    """How to continue `inputs`."""

    best_of: U64 | None = None
    temperature: F32 | None = None
    repetition_penalty: F32 | None = None
    frequency_penalty: F32 | None = None
    top_k: I32 | None = None
    top_p: F32 | None = None
    typical_p: F32 | None = None
    do_sample: bool = False
    max_new_tokens: U32 | None = None
    return_full_text: bool | None = None
    stop: list[str] = Field(default_factory=list)
    truncate: U64 | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: U64 | None = None
    top_n_tokens: U32 | None = None
    grammar: dict[str, Any] | None = None
    adapter_id: str | None = None


def sampled() -> GenerateParameters:
    """TGI samples when `parameters` is absent, and is greedy when it is `{}`."""
    return GenerateParameters(do_sample=True)


class GenerateRequest(Body):
    """A prompt and how to continue it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": "The capital of France is", "parameters": {"max_new_tokens": 20, "details": True}}]
        }
    )

    inputs: str
    parameters: GenerateParameters = Field(default_factory=sampled)


class CompatGenerateRequest(GenerateRequest):
    """The body of `/`, where `stream` picks the kind of answer."""

    stream: bool = False
