"""Paged attention on the CPU in C++: one call for any mix of prefill, chunks and decodes (see native/attention.cpp).

What an encoder reads is put into blocks too, which only its layer and step use.
"""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import byref, memmove, sizeof
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tgi_core.attention.base import (
    AttentionBackend,
    AttentionSpec,
    CachePart,
    FixedMetadata,
    Int32Array,
    StepInput,
    bias_origin,
)
from tgi_core.attention.tiles import cut_into_tiles
from tgi_core.cpu import kernels
from tgi_core.cpu.memory import lazy_zeros
from tgi_core.cpu.native import Layer, Step, library
from tgi_core.device.capabilities import MODEL_DTYPE
from tgi_core.kernels.ops import KernelQuery

TILE = 32  #: features, and tokens of a block, that the kernel handles at a time
TILE_ROWS = 32  #: query rows (tokens x heads of a group) that share a pass over keys and values


def supports(query: KernelQuery) -> str:
    """Why this backend cannot serve a model."""
    if query.block_size % TILE:
        return f"takes blocks of a multiple of {TILE} tokens, not {query.block_size}"
    if query.kv_dtype != MODEL_DTYPE:
        return f"keeps keys and values in the model's dtype, not in {query.kv_dtype}"
    return kernels.supports(query)


@dataclass(frozen=True)
class _Metadata:
    """The C view of a step, and the arrays that it points into."""

    steps: dict[tuple[str, int], Step]  #: by kind of layer, and query heads per KV head
    arrays: list[Int32Array]


class _Fixed:
    """The metadata of a recorded step: what is in it changes, where it is does not."""

    def __init__(self, attention: CpuAttention, kinds: Iterable[tuple[str, int]]) -> None:
        self._attention, self.metadata = attention, _Metadata({kind: Step() for kind in kinds}, [])

    def fill(self, step: StepInput) -> None:
        fresh = self._attention.prepare(step)
        self.metadata.arrays[:] = fresh.arrays
        for kind, own in self.metadata.steps.items():
            memmove(byref(own), byref(fresh.steps[kind]), sizeof(Step))

    def clear(self) -> None:
        for own in self.metadata.steps.values():
            own.tiles = own.tokens = 0


class CpuAttention(AttentionBackend):
    """Keys and values lie as the kernel's matrix product takes them, heads padded to whole tiles."""

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self._layers: list[Layer] = []
        self._slopes: list[Tensor] = []
        self._cache = self._encoder_blocks = torch.empty(0, dtype=torch.uint8)
        self._kinds: set[tuple[str, int]] = set()

    def add_layer(self, spec: AttentionSpec) -> int:
        self._kinds.add(_kind(spec))
        return super().add_layer(spec)

    def block_bytes(self) -> int:
        return sum(self._part_bytes(part) for part in set(self.cache_parts()) if part)

    def _part_bytes(self, part: AttentionSpec | CachePart) -> int:
        """Of one block's keys and values in one layer."""
        return 2 * part.kv_heads * self.block_size * _padded(part.head_size) * self.dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        """A block of all layers lies together, so that memory is taken as blocks are used."""
        stride = self.block_bytes()
        self._cache = lazy_zeros(num_blocks * stride)
        self._layers, self._slopes, self._encoder_blocks = [], [], torch.empty(0, dtype=torch.uint8)
        places: dict[CachePart, int] = {}
        end = self._cache.data_ptr()
        for spec, part in zip(self.specs, self.cache_parts(), strict=True):
            if part and part not in places:
                places[part] = end
                end += self._part_bytes(part)
            self._layers.append(self._layer(spec))
            if part:
                self._place(self._layers[-1], spec, places[part], stride)

    def _layer(self, spec: AttentionSpec) -> Layer:
        slopes = torch.tensor(spec.alibi_slopes or (), dtype=torch.float32)
        self._slopes.append(slopes)
        return Layer(
            alibi=slopes.data_ptr() if spec.alibi_slopes else None,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_size=spec.head_size,
            padded_size=_padded(spec.head_size),
            block_size=self.block_size,
            window=spec.window or 0,
            causal=spec.kind == "causal",
            is_bf16=self.dtype is torch.bfloat16,
            scale=spec.scale,
            soft_cap=spec.soft_cap or 0.0,
        )

    def _place(self, layer: Layer, spec: AttentionSpec, address: int, stride: int) -> None:
        """Let a layer's first block lie at `address`, the next one `stride` bytes later."""
        layer.keys, layer.values = address, address + self._part_bytes(spec) // 2
        layer.block_stride = stride // self.dtype.itemsize

    def prepare(self, step: StepInput) -> _Metadata:
        meta, source = _Metadata({}, []), step.source
        self._add(meta, "causal", step.query_starts, step.query_starts, step.context_lens, step.block_tables)
        if source is not None:
            self._add(meta, "cross", step.query_starts, source.starts, source.lens, source.block_tables)
            if source.starts[-1]:
                self._prepare_encoder(meta, source.starts)
        return meta

    def fixed(self, rows: int, tokens: int | None, width: int, variant: int) -> FixedMetadata | None:
        return _Fixed(self, (kind for kind in self._kinds if kind[0] != "encoder"))

    def _prepare_encoder(self, meta: _Metadata, starts: Int32Array) -> None:
        """Blocks for the sources that begin, one after the other; all layers use the same."""
        lens = np.diff(starts)
        counts = -(-lens // self.block_size)
        first = np.cumsum(counts) - counts
        tables = (first[:, None] + np.arange(counts.max())).astype(np.int32)
        layers = [(spec, layer) for spec, layer in zip(self.specs, self._layers, strict=True) if spec.kind == "encoder"]
        size_bytes = int(counts.sum()) * max(self._part_bytes(spec) for spec, _ in layers)
        if len(self._encoder_blocks) < size_bytes:
            self._encoder_blocks = torch.zeros(size_bytes, dtype=torch.uint8)  # the padding of heads stays zero
            for spec, layer in layers:
                self._place(layer, spec, self._encoder_blocks.data_ptr(), self._part_bytes(spec))
        self._add(meta, "encoder", starts, starts, lens, tables)

    def _add(
        self,
        meta: _Metadata,
        kind: str,
        query_starts: Int32Array,
        key_starts: Int32Array,
        context_lens: Int32Array,
        tables: Int32Array,
    ) -> None:
        """What layers of a kind need to know of the step; see `Step` of native/attention.cpp."""
        tables = np.ascontiguousarray(tables)
        key_lens = np.diff(key_starts)
        token_sequence = np.repeat(np.arange(len(key_lens), dtype=np.int32), key_lens)
        meta.arrays.extend((tables, query_starts, key_starts, context_lens, token_sequence))
        for group in [group for used, group in self._kinds if used == kind]:
            tile_tokens = max(1, TILE_ROWS // group)
            tile_sequence, tile_start = cut_into_tiles(np.diff(query_starts), tile_tokens)
            meta.arrays.extend((tile_sequence, tile_start))
            meta.steps[kind, group] = Step(
                tables=tables.ctypes.data,
                query_starts=query_starts.ctypes.data,
                key_starts=key_starts.ctypes.data,
                context_lens=context_lens.ctypes.data,
                tile_sequence=tile_sequence.ctypes.data,
                tile_start=tile_start.ctypes.data,
                token_sequence=token_sequence.ctypes.data,
                table_width=tables.shape[1],
                tiles=len(tile_sequence),
                tokens=len(token_sequence),
                tile_tokens=tile_tokens,
            )

    def forward(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, meta: _Metadata, bias: Tensor | None = None
    ) -> Tensor:
        spec = self.specs[layer]
        out = torch.empty(q.shape, dtype=q.dtype)
        columns = bias.shape[1] if bias is not None else 0
        library().tgi_paged_attention(
            byref(self._layers[layer]),
            byref(meta.steps[_kind(spec)]),
            bias.data_ptr() if bias is not None else None,
            columns,
            bias_origin(spec, columns),
            q.data_ptr(),
            q.stride(0),
            k.data_ptr() if k is not None else None,
            k.stride(0) if k is not None else 0,
            v.data_ptr() if v is not None else None,
            v.stride(0) if v is not None else 0,
            out.data_ptr(),
        )
        return out


def _kind(spec: AttentionSpec) -> tuple[str, int]:
    """Layers of one kind share a `Step`."""
    return spec.kind, spec.heads // spec.kv_heads


def _padded(size: int) -> int:
    return -(-size // TILE) * TILE
