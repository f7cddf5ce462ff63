"""Paged attention in shapes that never vary: rows padded to a length, tables padded to a width.

Letters: B rows, Q tokens of each, K keys of each, H query heads, Hkv key and value heads, D head size, W blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, AttentionSpec, CachePart, StepInput, bias_origin
from tgi_core.kernels.ops import KernelQuery


@dataclass(frozen=True)
class Pages:
    """Where rows keep their keys and values."""

    write: Tensor  #: [B Q] place of each token that is new, counted over all blocks; padding goes to the spare one
    tables: Tensor | None = None  #: [B, W] block ids; None where all keys are new


@dataclass(frozen=True)
class PaddedMetadata:
    """One step of B rows, each with as many tokens.  Rows that read prompts begin at position 0."""

    positions: Tensor  #: [B, Q] of the queries
    own: Pages
    source: Pages | None = None  #: of encoder-decoders
    source_lens: Tensor | None = None  #: [B] tokens of each source, at least 1
    _scores: dict[Any, Tensor] = field(default_factory=dict)

    def once(self, key: Any, compute: Any) -> Tensor:
        """What layers of one kind add to their scores, computed by the first of them."""
        if key not in self._scores:
            self._scores[key] = compute()
        return self._scores[key]


class PaddedAttention(AttentionBackend):
    """Keeps keys and values as [blocks * block size, Hkv, D]; the last block is spare.

    `prepare` is not its business: the runner that pads steps makes `PaddedMetadata`.
    """

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self._caches: dict[CachePart, tuple[Tensor, Tensor]] = {}
        self._slopes: dict[tuple[float, ...], Tensor] = {}

    def allocate(self, num_blocks: int) -> None:
        self._parts = self.cache_parts()
        self.spare = num_blocks * self.block_size  #: the first place of the spare block
        for part in {part for part in self._parts if part}:
            shape = (self.spare + self.block_size, part.kv_heads, part.head_size)
            keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
            self._caches[part] = keys, values
        for slopes in {spec.alibi_slopes for spec in self.specs if spec.alibi_slopes}:
            self._slopes[slopes] = torch.tensor(slopes, dtype=torch.float32, device=self.device)

    def prepare(self, step: StepInput) -> PaddedMetadata:
        raise TypeError("steps for this attention are padded by tgi_gaudi.runner:PaddedRunner; use that runner")

    def forward(
        self,
        layer: int,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        meta: PaddedMetadata,
        bias: Tensor | None = None,
    ) -> Tensor:
        spec, rows = self.specs[layer], len(meta.positions)
        if spec.kind == "encoder":
            keys, values = _rows(k, rows), _rows(v, rows)
        else:
            pages = meta.own if spec.kind == "causal" else meta.source
            keys, values = self._stored(layer, k, v, pages, rows)
        queries = _rows(q, rows)
        key = (spec.kind, spec.window, spec.alibi_slopes, id(bias))
        added = meta.once(key, lambda: self._added(spec, meta, queries.shape[1], keys.shape[1], bias))
        seen = meta.once((spec.kind, "seen"), lambda: _seen(spec, meta, keys.shape[1]))
        return attend(spec, queries, keys, values.masked_fill(~seen, 0), added)

    def _stored(
        self, layer: int, k: Tensor | None, v: Tensor | None, pages: Pages | None, rows: int
    ) -> tuple[Tensor, Tensor]:
        """Keep what is new, and return all that there is: [B, K, Hkv, D] each."""
        part = self._parts[layer]
        if pages is None or part is None:
            raise ValueError("this step has no place for the keys of such a layer")
        keys, values = self._caches[part]
        if k is not None and v is not None:
            keys.index_copy_(0, pages.write, k)
            values.index_copy_(0, pages.write, v)
        if pages.tables is None:
            return _rows(k, rows), _rows(v, rows)
        paged = (-1, self.block_size, part.kv_heads, part.head_size)
        found = (x.view(paged).index_select(0, pages.tables.flatten()) for x in (keys, values))
        stored_keys, stored_values = (x.view(rows, -1, part.kv_heads, part.head_size) for x in found)
        return stored_keys, stored_values

    def _added(self, spec: AttentionSpec, meta: PaddedMetadata, queries: int, keys: int, bias: Tensor | None) -> Tensor:
        """What is added to scores, float32, -inf where a query does not see a key: [B, H or 1, Q, K]."""
        columns = torch.arange(keys, device=self.device)
        if spec.kind == "causal":
            positions = meta.positions
        else:
            positions = torch.arange(queries, device=self.device).expand(len(meta.positions), -1)
        distance = columns - positions.unsqueeze(-1)  # [B, Q, K], 0 = itself
        if spec.kind == "causal":
            hidden = distance > 0
            if spec.window:
                hidden = hidden | (distance <= -spec.window)
        else:
            hidden = (~_seen(spec, meta, keys).flatten(1)).unsqueeze(1).expand_as(distance)
        added = torch.zeros((), device=self.device).expand(len(distance), 1, *distance.shape[1:])
        if spec.alibi_slopes:
            added = self._slopes[spec.alibi_slopes].view(-1, 1, 1) * distance.unsqueeze(1)
        if bias is not None:
            reach = bias.shape[1]
            places = (distance + bias_origin(spec, reach)).clamp(0, reach - 1)
            added = added + bias.index_select(1, places.flatten()).view(-1, *distance.shape).transpose(0, 1)
        return added.masked_fill(hidden.unsqueeze(1), float("-inf"))


def _seen(spec: AttentionSpec, meta: PaddedMetadata, keys: int) -> Tensor:
    """Whether any query of a row sees a key, which may be left over from another sequence: [B, K, 1, 1]"""
    if spec.kind == "causal":
        lens = meta.positions[:, -1:] + 1
    elif meta.source_lens is not None:
        lens = meta.source_lens.unsqueeze(1)
    else:
        raise ValueError("this step has no sources")
    return (torch.arange(keys, device=lens.device) < lens)[..., None, None]


def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, added: Tensor) -> Tensor:
    """q [B, Q, H, D], k and v [B, K, Hkv, D], added to scores [B, H or 1, Q, K] -> [B Q, H, D]"""
    rows, queries, heads, size = q.shape
    kv_heads = k.shape[2]
    q = q.view(rows, queries, kv_heads, -1, size).permute(0, 2, 3, 1, 4)  # [B, Hkv, H / Hkv, Q, D]
    scores = (q @ k.permute(0, 2, 3, 1).unsqueeze(2)).float() * spec.scale
    if spec.soft_cap:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    grouped = added.view(rows, kv_heads, -1, *added.shape[2:]) if added.shape[1] > 1 else added.unsqueeze(1)
    # a key that no query sees may be left over from a sequence that failed
    weights = (scores + grouped).masked_fill(grouped == float("-inf"), float("-inf")).softmax(-1)
    out = weights.to(v.dtype) @ v.permute(0, 2, 1, 3).unsqueeze(2)
    return out.permute(0, 3, 1, 2, 4).reshape(rows * queries, heads, size)


def _rows(x: Tensor | None, rows: int) -> Tensor:
    """[B T, ...] -> [B, T, ...]"""
    if x is None:
        raise ValueError("this step computes no keys for such a layer")
    return x.view(rows, -1, *x.shape[1:]) if x.is_contiguous() else x.reshape(rows, -1, *x.shape[1:])
