"""Paged attention in plain PyTorch, one sequence at a time: the meaning of the others."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, AttentionSpec, CachePart, Int32Array, StepInput, bias_origin
from tgi_core.attention.cache_dtype import put, take
from tgi_core.kernels.ops import KernelQuery


@dataclass(frozen=True)
class _Keys:
    """Of one sequence: the keys that its queries see, and those that are new."""

    rows: slice  #: of q
    slots: Tensor  #: of the cache that hold all keys
    new_rows: slice  #: of k and v; they go to the last of those slots


@dataclass(frozen=True)
class _Metadata:
    causal: list[_Keys]
    cross: list[_Keys]
    sources: list[slice]  #: rows of what an encoder reads


class ReferenceAttention(AttentionBackend):
    """Keeps keys and values as [2, slots, Hkv, D] for each part of a block."""

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self.caches: dict[CachePart | None, Tensor] = {}

    def allocate(self, num_blocks: int) -> None:
        self._parts = self.cache_parts()
        shapes = {
            part: (2, num_blocks * self.block_size, part.kv_heads, part.head_size) for part in self._parts if part
        }
        self.caches = {
            part: torch.zeros(shape, dtype=self.cache_dtype, device=self.device) for part, shape in shapes.items()
        }

    def prepare(self, step: StepInput) -> _Metadata:
        queries, source = _slices(step.query_starts), step.source
        causal = self._keys(queries, step.block_tables, step.context_lens, queries)
        if source is None:
            return _Metadata(causal, [], [])
        new = _slices(source.starts)
        return _Metadata(
            causal, self._keys(queries, source.block_tables, source.lens, new), [s for s in new if s.stop > s.start]
        )

    def _keys(self, rows: list[slice], tables: Int32Array, lens: Int32Array, new_rows: list[slice]) -> list[_Keys]:
        keys = []
        for index, length in enumerate(lens):
            positions = torch.arange(int(length))
            blocks = torch.from_numpy(tables[index].astype("int64"))
            slots = blocks[positions // self.block_size] * self.block_size + positions % self.block_size
            keys.append(_Keys(rows[index], slots.to(self.device), new_rows[index]))
        return keys

    def forward(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, meta: _Metadata, bias: Tensor | None = None
    ) -> Tensor:
        spec, out = self.specs[layer], q.new_empty(q.shape)
        if spec.kind == "encoder" and k is not None and v is not None:
            for rows in meta.sources:
                out[rows] = _attend(spec, q[rows], k[rows], v[rows], bias)
            return out
        sequences, cache = meta.causal if spec.kind == "causal" else meta.cross, self.caches[self._parts[layer]]
        if k is not None and v is not None:
            for keys in sequences:
                new = keys.slots[len(keys.slots) - (keys.new_rows.stop - keys.new_rows.start) :]
                put(cache[0], new, k[keys.new_rows])
                put(cache[1], new, v[keys.new_rows])
        for keys in sequences:
            k_seen, v_seen = (take(one, keys.slots, self.dtype) for one in cache)
            out[keys.rows] = _attend(spec, q[keys.rows], k_seen, v_seen, bias)
        return out


def _slices(starts: Int32Array) -> list[slice]:
    return [slice(int(start), int(stop)) for start, stop in itertools.pairwise(starts)]


def _attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """q [Q, H, D], k and v [S, Hkv, D] -> [Q, H, D]; the queries are the last Q of S positions, if they are of them."""
    group = spec.heads // spec.kv_heads
    keys, values = (t.float().repeat_interleave(group, dim=1).transpose(0, 1) for t in (k, v))  # [H, S, D]
    scores = q.float().transpose(0, 1) @ keys.transpose(1, 2) * spec.scale  # [H, Q, S]
    if spec.soft_cap:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    positions = torch.arange(len(k) - len(q), len(k), device=q.device)
    distance = torch.arange(len(k), device=q.device) - positions.unsqueeze(1)  # [Q, S], 0 = itself
    if spec.alibi_slopes:
        scores = scores + torch.tensor(spec.alibi_slopes, device=q.device).view(-1, 1, 1) * distance
    if bias is not None:
        columns = bias.shape[1]
        scores = scores + bias[:, (distance + bias_origin(spec, columns)).clamp(0, columns - 1)]
    if spec.kind == "causal":
        hidden = distance > 0
        if spec.window:
            hidden |= distance <= -spec.window
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
