"""Paged attention on the CPU in C++: one call for any mix of prefill, chunks and decodes (see native/attention.cpp)."""

from __future__ import annotations

import contextlib
import mmap
from ctypes import byref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, AttentionSpec, Int32Array, StepInput
from tgi_core.cpu import kernels
from tgi_core.cpu.native import Layer, Step, library
from tgi_core.kernels.ops import KernelQuery

TILE = 32  #: features, and tokens of a block, that the kernel handles at a time
TILE_ROWS = 32  #: query rows (tokens x heads of a group) that share a pass over keys and values


def supports(query: KernelQuery) -> str:
    """Why this backend cannot serve a model."""
    if query.block_size % TILE:
        return f"takes blocks of a multiple of {TILE} tokens, not {query.block_size}"
    return kernels.supports(query)


@dataclass(frozen=True)
class _Metadata:
    """The C view of a step, and the arrays that it points into."""

    steps: dict[int, Step]  #: by query heads per KV head
    arrays: tuple[Int32Array, ...]


class CpuAttention(AttentionBackend):
    """Keys and values lie as the kernel's matrix product takes them, heads padded to whole tiles."""

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self._layers: list[Layer] = []
        self._slopes: list[Tensor] = []
        self._cache = torch.empty(0, dtype=torch.uint8)
        self._groups: set[int] = set()

    def add_layer(self, spec: AttentionSpec) -> int:
        self._groups.add(spec.heads // spec.kv_heads)
        return super().add_layer(spec)

    def block_bytes(self) -> int:
        return sum(2 * self._elements(spec) for spec in self.specs) * self.dtype.itemsize

    def _elements(self, spec: AttentionSpec) -> int:
        """Of one block's keys, or values, in one layer."""
        return spec.kv_heads * self.block_size * _padded(spec.head_size)

    def allocate(self, num_blocks: int) -> None:
        """A block of all layers lies together, so that memory is taken as blocks are used."""
        stride = self.block_bytes()
        self._cache = lazy_zeros(num_blocks * stride)
        self._layers, self._slopes = [], []
        keys = self._cache.data_ptr()
        for spec in self.specs:
            values = keys + self._elements(spec) * self.dtype.itemsize
            slopes = torch.tensor(spec.alibi_slopes or (), dtype=torch.float32)
            self._slopes.append(slopes)
            self._layers.append(
                Layer(
                    keys=keys,
                    values=values,
                    alibi=slopes.data_ptr() if spec.alibi_slopes else None,
                    heads=spec.heads,
                    kv_heads=spec.kv_heads,
                    head_size=spec.head_size,
                    padded_size=_padded(spec.head_size),
                    block_size=self.block_size,
                    block_stride=stride // self.dtype.itemsize,
                    window=spec.window or 0,
                    is_bf16=self.dtype is torch.bfloat16,
                    scale=spec.scale,
                    soft_cap=spec.soft_cap or 0.0,
                )
            )
            keys = values + self._elements(spec) * self.dtype.itemsize

    def prepare(self, step: StepInput) -> _Metadata:
        tables = np.ascontiguousarray(step.block_tables)
        lengths = np.diff(step.query_starts)
        token_sequence = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        arrays = [tables, step.query_starts, step.context_lens, token_sequence]
        steps = {}
        for group in self._groups:
            tile_tokens = max(1, TILE_ROWS // group)
            tile_sequence, tile_start = _tiles(lengths, tile_tokens)
            arrays += [tile_sequence, tile_start]
            steps[group] = Step(
                tables=tables.ctypes.data,
                query_starts=step.query_starts.ctypes.data,
                context_lens=step.context_lens.ctypes.data,
                tile_sequence=tile_sequence.ctypes.data,
                tile_start=tile_start.ctypes.data,
                token_sequence=token_sequence.ctypes.data,
                table_width=tables.shape[1],
                tiles=len(tile_sequence),
                tokens=step.num_tokens,
                tile_tokens=tile_tokens,
            )
        return _Metadata(steps, tuple(arrays))

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor, meta: _Metadata) -> Tensor:
        spec = self.specs[layer]
        out = torch.empty(q.shape, dtype=q.dtype)
        library().tgi_paged_attention(
            byref(self._layers[layer]),
            byref(meta.steps[spec.heads // spec.kv_heads]),
            q.data_ptr(),
            q.stride(0),
            k.data_ptr(),
            k.stride(0),
            v.data_ptr(),
            v.stride(0),
            out.data_ptr(),
        )
        return out


def lazy_zeros(size_bytes: int) -> Tensor:
    """Zeros [size_bytes] of uint8 that take no memory until they are written, then huge pages where there are any."""
    pages = mmap.mmap(-1, size_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _padded(size: int) -> int:
    return -(-size // TILE) * TILE


def _tiles(lengths: Int32Array, tile_tokens: int) -> tuple[Int32Array, Int32Array]:
    """Sequence and first token of every tile."""
    counts = -(-lengths // tile_tokens)
    sequence = np.repeat(np.arange(len(lengths), dtype=np.int32), counts)
    first_tile = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(sequence)) - first_tile) * tile_tokens
    return sequence, start.astype(np.int32)
