"""The attention interface.  A backend owns the cache layout and the metadata of a step."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tgi_core.attention.cache_dtype import cache_dtype
from tgi_core.kernels.ops import KernelQuery

Int32Array = npt.NDArray[np.int32]
Rotation = tuple[Tensor, Tensor]  #: cos and sin [T, R/2] of float32, see `Kernels.rotary`


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """One attention layer of a model."""

    heads: int  #: query heads
    kv_heads: int  #: heads is a multiple of it
    head_size: int
    scale: float  #: of q . k
    window: int | None = None  #: keys that a query sees, itself included; None = all
    soft_cap: float | None = None  #: scores s become cap * tanh(s / cap)
    alibi_slopes: tuple[float, ...] | None = None  #: one per query head (arXiv 2108.12409)
    kind: Literal["causal", "encoder", "cross"] = "causal"  #: whom tokens see: see `AttentionBackend.forward`


class CachePart(NamedTuple):
    """A layer's part of a block, for its keys and values.

    A block holds a sequence's own keys or those of its source, never both: causal and cross-attention layers share
    parts.
    """

    number: int  #: among the layers of its kind
    kv_heads: int
    head_size: int


@dataclass(frozen=True)
class StepInput:
    """One step as backends see it: B sequences with T tokens, on the host, in batch order."""

    query_starts: Int32Array  #: [B + 1] first token of each sequence; the last entry is T
    context_lens: Int32Array  #: [B] tokens of each sequence after this step
    block_tables: Int32Array  #: [B, W] block ids; entries past a sequence's last block are undefined

    source: SourceInput | None = None  #: of encoder-decoders

    @property
    def num_tokens(self) -> int:
        return int(self.query_starts[-1])


@dataclass(frozen=True)
class SourceInput:
    """The sources of a step's B sequences, S tokens of which are encoded in this step."""

    starts: Int32Array  #: [B + 1] first of those S tokens of each sequence; none of sources that were encoded before
    lens: Int32Array  #: [B] tokens of each source, encoded now or before
    block_tables: Int32Array  #: [B, W] of cross-attention; entries past a source's last block are undefined


@dataclass(frozen=True)
class EncoderInput:
    """What the encoder reads in a step: S tokens of the sources that begin."""

    ids: Tensor  #: [S] int64
    positions: Tensor  #: [S] int64, from 0 in each source
    lens: tuple[int, ...]  #: tokens of each source


@dataclass
class ForwardContext:
    """What every layer of one forward pass may read."""

    positions: Tensor  #: [T] int64
    attention: Any  #: what `AttentionBackend.prepare` returned; opaque to models
    encoder: EncoderInput | None = None  #: None where no source begins
    _once: dict[int, Any] = field(default_factory=dict)

    def once(self, compute: Callable[[Tensor], Any]) -> Any:
        """`compute(positions)`, computed by the first layer that asks for it in this step."""
        key = id(compute)
        if key not in self._once:
            self._once[key] = compute(self.positions)
        return self._once[key]


def bias_origin(spec: AttentionSpec, columns: int) -> int:
    """The column of `AttentionBackend.forward`'s bias for the query's own position."""
    return columns // 2 if spec.kind == "encoder" else columns - 1


class FixedMetadata(Protocol):
    """Metadata of steps in memory that stays where it is."""

    metadata: Any  #: for `AttentionBackend.forward`

    def fill(self, step: StepInput) -> None:
        """Take over a step; what it has less is padding, for which nothing is read or written."""

    def clear(self) -> None:
        """Make everything padding."""


class AttentionBackend(ABC):
    """One attention implementation on one device, for one model."""

    rotates = False  #: whether it has `forward_rotated`, which saves a pass over queries and keys
    keeps_sources = False  #: whether it has `keep_source`, so that encoders may be run before the step of their decoder
    can_be_ahead = False  #: it stores nothing where `kernels.compiling.ahead` leaves kernels out

    def __init__(self, query: KernelQuery) -> None:
        self.block_size, self.device = query.block_size, torch.device(query.torch_device)
        self.dtype: torch.dtype = getattr(torch, query.dtype)
        self.cache_dtype = cache_dtype(query)
        self.specs: list[AttentionSpec] = []

    def add_layer(self, spec: AttentionSpec) -> int:
        """Register a layer while the model is built; its number goes into `forward`."""
        self.specs.append(spec)
        return len(self.specs) - 1

    def cache_parts(self) -> list[CachePart | None]:
        """Of each layer; those of encoders store nothing.  Equal parts lie in the same place."""
        numbers = {"causal": itertools.count(), "cross": itertools.count()}
        return [
            CachePart(next(numbers[spec.kind]), spec.kv_heads, spec.head_size) if spec.kind != "encoder" else None
            for spec in self.specs
        ]

    def block_bytes(self) -> int:
        """Bytes of one block over all layers, for backends that store keys and values as they come."""
        elements = sum(2 * part.kv_heads * part.head_size for part in set(self.cache_parts()) if part)
        return elements * self.block_size * self.cache_dtype.itemsize

    @abstractmethod
    def allocate(self, num_blocks: int) -> None:
        """Create the KV cache."""

    @abstractmethod
    def prepare(self, step: StepInput) -> Any:
        """Metadata of a step: built once, outside any captured graph, then read by every layer."""

    def fixed(self, rows: int, tokens: int | None, width: int, variant: int) -> FixedMetadata | None:
        """Metadata for recorded steps of at most `rows` sequences; None if it has none.

        Args:
            tokens: at most so many of any mixture; None for decodes, which have one token each.  Where there are layers
                for sources, which `keeps_sources`, so many of those that begin, and metadata of their layers.
            width: blocks of the longest sequence.
            variant: what `variant` returned, or for mixtures `mixture_variant`.
        """
        return None

    def variant(self, rows: int, longest: int) -> int:
        """Which recording serves decodes of `rows` sequences, the longest of so many tokens."""
        return 0

    def mixture_variant(self, rows: int, longest: int) -> int:
        """Which one serves mixtures."""
        return self.variant(rows, longest)

    @abstractmethod
    def forward(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, meta: Any, bias: Tensor | None = None
    ) -> Tensor:
        """Store k and v in the cache, then attend to what is stored: a new key too is seen as the cache rounds it.

        q [T, H, D], k and v [T, Hkv, D], rows may be strided -> [T, H, D] contiguous.  Every sequence has at least
        one token; any mix of lengths is allowed.  By the layer's kind:

        - causal: a token sees itself and those before it.
        - encoder: q, k and v are those of the S source tokens that are encoded in this step; a token sees all of its
          source, and nothing is stored.
        - cross: k and v are those of the same S tokens, None where S is 0; a token of the sequence sees all of its
          source, encoded now or before.

        Args:
            bias: [H, R] of float32, contiguous, added to the scaled scores: column c where the key's position less
                the query's is c - origin, the first and the last one for whatever lies beyond.  The origin is R - 1
                in causal layers and R // 2 in encoders; cross-attention has no bias.
        """

    def keep_source(self, layer: int, k: Tensor, v: Tensor, meta: Any) -> None:
        """Store k and v [S, Hkv, D] of the sources that begin, for a cross layer whose `forward` is then given none."""
        raise NotImplementedError

    def forward_rotated(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, meta: Any) -> Tensor:
        """`forward` of a causal layer whose q and k are turned first, as by `Kernels.rotary`; may overwrite them."""
        raise NotImplementedError
