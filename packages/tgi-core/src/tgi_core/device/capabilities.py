"""Facts about a device that the scheduler and the resolver read, so that they never ask which vendor it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

ONE_BLOCK_PER_SEQUENCE = 0
MODEL_DTYPE = "model"  #: keys and values in the dtype of weights and activations
FLOAT8 = ("fp8_e4m3fn", "fp8_e5m2")


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Declared before weights load; may only narrow afterwards."""

    block_sizes: tuple[int, ...] = (16,)  #: tokens per KV block, best first; (0,) = one block holds a whole sequence
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")  #: of weights and activations, best first
    kv_dtypes: tuple[str, ...] = (MODEL_DTYPE,)  #: of keys and values, the default first; see `attention.cache_dtype`
    static_shapes: bool = False  #: inputs are padded to a bucket
    batch_buckets: tuple[int, ...] = ()  #: sequences per step, ascending
    token_buckets: tuple[int, ...] = ()  #: tokens per step with prompts that is recorded, ascending
    mixture_buckets: tuple[int, ...] = (64,)  #: sequences per step with prompts that is recorded, ascending
    record_ahead: bool = False  #: steps of all sizes in moments without work, as recording one holds up requests
    prefill_buckets: tuple[int, ...] = ()  #: tokens per sequence, ascending
    prefill_rows: int | None = None  #: sequences per prefill step; None = any
    max_sequences: int | None = None  #: fixed by a compiled graph
    max_prompt_len: int | None = None  #: fixed by a compiled graph; apart from the total length
    max_len: int | None = None  #: prompt plus output, fixed by a compiled graph
    chunked_prefill: bool = True
    prefix_caching: bool = True
    mixed_batches: bool = True  #: prefill and decode in one step
    decode_all_live: bool = False  #: a live slot that is left out of a decode is corrupted
    asynchronous: bool = False  #: `submit` returns while the device works
    prefill_tokens: int = 4096  #: tokens of prompt per step that keep the device busy without stalling decodes
    #: the same while at least as many requests decode as wait; the engine then measures how many the model reads in a
    #: moment.  Where it is given, no further prompt joins a step that has more than these, and half the prompt tokens
    #: of the largest one.  None = no fewer, and prompts fill steps
    mixed_tokens: int | None = None
    batch_size: int = 256  #: sequences that pay off in one decode step
    host_memory: bool = False  #: weights and KV cache live in the host's own memory
    memory_fraction: float = 0.9  #: of the free memory that KV cache may take
    tells_memory: bool = False  #: `free_bytes` tells what the process has taken, so that a step can be measured
    #: how checkpoints name quantizations that are not served here -> why not, and what to do instead
    refused_quantizations: Mapping[str, str] = field(default_factory=dict, hash=False)
    #: formats of keys and values that another device of this kind has -> why this one has not, and what to do instead
    refused_kv_dtypes: Mapping[str, str] = field(default_factory=dict, hash=False)
    #: fields of SamplingParams that requests must leave at their defaults -> why, and what to do instead
    refused_parameters: Mapping[str, str] = field(default_factory=dict, hash=False)
    max_top_k: int | None = None  #: that the device can sample with

    def without_kv_dtypes(self, refused: Mapping[str, str]) -> Capabilities:
        """The same less some formats of keys and values, each with why, and what to do instead."""
        kept = tuple(name for name in self.kv_dtypes if name not in refused)
        return replace(self, kv_dtypes=kept, refused_kv_dtypes=refused)
