"""What a person wishes of an engine, and what was made of it."""

from __future__ import annotations

import msgspec

from tgi_core.stats import Reason


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A person's wishes.  None means: you choose.  `tgi_core.engine.resolve` turns it into a `ResolvedConfig`."""

    model_id: str = ""  #: folder, .gguf file or hub id; "" = the embedded default
    revision: str | None = None
    tokenizer_config_path: str | None = None
    device: str | None = None  #: "cpu", "cuda", ...
    dtype: str | None = None  #: "float32" | "bfloat16" | "float16"
    quantize: str | None = None
    deterministic: bool = False  #: a request's tokens do not depend on what runs beside it
    kv_cache_dtype: str | None = None  #: "model" | "fp8_e4m3fn" | "fp8_e5m2"
    num_shard: int | None = None  #: ranks to divide the model over
    sharded: bool | None = None  #: whether to divide it; without `num_shard` over all devices
    trust_remote_code: bool = False
    disable_custom_kernels: bool = False
    kernels: dict[str, str] = {}  #: op -> name of the implementation to use
    disabled_plugins: tuple[str, ...] = ()
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_batch_prefill_tokens: int | None = None
    max_batch_total_tokens: int | None = None
    max_batch_size: int | None = None
    memory_fraction: float = 1.0  #: of the device's free memory
    prefix_caching: bool | None = None
    rope_scaling: str | None = None  #: "linear" | "dynamic"
    rope_factor: float | None = None
    watermark_gamma: float = 0.5
    watermark_delta: float = 2.0
    cache_dir: str | None = None  #: hub cache
    seed: int = 0  #: for requests that bring none


class ResolvedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine runs with: no None left."""

    model_id: str
    device: str
    dtype: str
    kv_cache_dtype: str  #: that keys and values are kept in
    max_input_tokens: int
    max_total_tokens: int
    max_output_tokens: int | None  #: that a decoder with positions of its own may write; None = any
    max_batch_prefill_tokens: int
    max_batch_total_tokens: int
    max_batch_size: int
    block_size: int
    num_blocks: int
    prefix_caching: bool
    num_shard: int  #: ranks that hold the model
    reasons: list[Reason]
    refused_parameters: dict[str, str] = {}  #: see Capabilities
    max_top_k: int | None = None  #: see Capabilities
