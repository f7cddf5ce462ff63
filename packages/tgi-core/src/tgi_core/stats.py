"""Numbers about a running engine."""

from __future__ import annotations

import msgspec


class StepStats(msgspec.Struct, frozen=True, kw_only=True):
    """One step, and the engine's state after it."""

    kind: str  #: "prefill" | "decode" | "mixed" | "idle"
    duration_s: float  #: from schedule to results
    forward_s: float  #: of that, inside the runner
    prefill_tokens: int  #: prompt tokens computed
    decode_tokens: int  #: rows that continued a sequence
    running: int  #: sequences that hold KV blocks
    waiting: int  #: requests in the queue
    free_blocks: int
    cached_blocks: int  #: hold a reusable prefix, owned by nobody
    held_blocks: int
    batch_max_tokens: int  #: prompt plus max_new_tokens, summed over running sequences
    preemptions: int  #: in this step
    prefix_hits: int  #: tokens answered by the prefix cache in this step
    prefix_queries: int  #: tokens looked up in the prefix cache in this step


class Reason(msgspec.Struct, frozen=True):
    """An automatic choice and why it was made."""

    setting: str
    value: str
    why: str


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a ready engine is and may be asked."""

    model_id: str
    model_type: str
    architecture: str
    device: str  #: kind: "cpu", "cuda", ...
    product: str  #: "Intel(R) Xeon(R) Processor", "NVIDIA H100 80GB HBM3"
    dtype: str
    vocab_size: int
    max_input_tokens: int
    max_total_tokens: int
    max_batch_prefill_tokens: int
    max_batch_total_tokens: int
    max_batch_size: int
    block_size: int
    num_blocks: int
    kernels: dict[str, str]  #: op -> name of the chosen implementation
    reasons: list[Reason]
    num_shard: int = 1  #: ranks that hold the model
    load_s: float  #: from process start to ready
    fallback: str = ""  #: why this model runs on transformers' own code, "" if it does not
    custom_kernels: bool = True
    extra_parameters: dict[str, str] = {}  #: request fields of plugins' logits processors -> JSON type
    max_output_tokens: int | None = None  #: see ResolvedConfig
    refused_parameters: dict[str, str] = {}  #: see Capabilities
    max_top_k: int | None = None  #: see Capabilities
    kv_cache_dtype: str = ""  #: that keys and values are kept in
    deterministic: bool = False  #: whether a request's tokens do not depend on what runs beside it
    decoder_start_ids: list[int] = []  #: with which the decoder of an encoder-decoder begins; empty for decoders
