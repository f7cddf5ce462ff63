"""Paged attention in shapes that never vary: rows padded to a length, tables padded to a width.

Letters: B rows, Q tokens of each, K keys of each, H query heads, Hkv key and value heads, D head size, W blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, AttentionSpec, CachePart, Int32Array, StepInput, bias_origin
from tgi_core.kernels.ops import KernelQuery

IntArray = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Pages:
    """Where rows keep their keys and values."""

    write: Tensor  #: [B Q] place of each token that is new, counted over all blocks; padding goes to the spare one
    tables: Tensor | None = None  #: [B, W] block ids; None where all keys are new


@dataclass(frozen=True)
class Padding:
    """How T tokens without padding become B rows of Q, and back."""

    tokens: Tensor  #: [B Q] the token that stands at each place; any one at places that pad
    places: Tensor  #: [T] the place of each token


@dataclass(frozen=True)
class PaddedMetadata:
    """One step of B rows, each with as many tokens.  Where no tables are given, rows begin at position 0."""

    positions: Tensor  #: [B, Q] of the queries
    own: Pages
    source: Pages | None = None  #: of encoder-decoders
    source_lens: Tensor | None = None  #: [B] tokens of each source, at least 1
    own_padding: Padding | None = None  #: of tokens that come without padding
    source_padding: Padding | None = None  #: the same of a source's
    _scores: dict[Any, Tensor] = field(default_factory=dict)

    def once(self, key: Any, compute: Any) -> Tensor:
        """What layers of one kind add to their scores, computed by the first of them."""
        if key not in self._scores:
            self._scores[key] = compute()
        return self._scores[key]


class PaddedAttention(AttentionBackend):
    """Keeps keys and values as [blocks * block size, Hkv, D]; the last block is spare.

    A runner that pads steps makes `PaddedMetadata` itself; `prepare` is for steps as they come, of any shape.
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
        lengths = np.diff(step.query_starts)
        own = pad_rows(step.query_starts, step.context_lens - lengths)
        has_past = bool((step.context_lens > lengths).any())
        pages = self._pages(own, step.block_tables, step.context_lens, has_past=has_past)
        positions, padding = self._upload(own.positions), self._padding(own)
        if step.source is None:
            return PaddedMetadata(positions, pages, own_padding=padding)
        read, source = step.source, pad_rows(step.source.starts, np.zeros_like(step.source.lens))
        return PaddedMetadata(
            positions,
            pages,
            self._pages(source, read.block_tables, read.lens, has_past=True),
            self._upload(read.lens),
            padding,
            self._padding(source),
        )

    def _pages(self, rows: PaddedRows, tables: Int32Array, lens: Int32Array, *, has_past: bool) -> Pages:
        """Where padded rows write, and the blocks that they read; what tables have too much is undefined."""
        used = np.arange(tables.shape[1]) < -(-lens[:, None] // self.block_size)
        tables = np.where(used, tables, 0)
        blocks = np.take_along_axis(tables, rows.positions // self.block_size, axis=1).astype(np.int64)
        places = blocks * self.block_size + rows.positions % self.block_size
        spare = self.spare + np.arange(places.size).reshape(places.shape) % self.block_size
        write = self._upload(np.where(rows.is_token, places, spare).ravel())
        return Pages(write, self._upload(tables) if has_past else None)

    def _padding(self, rows: PaddedRows) -> Padding:
        return Padding(self._upload(rows.tokens.ravel()), self._upload(np.flatnonzero(rows.is_token)))

    def _upload(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.device)

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
        of_queries = meta.source_padding if spec.kind == "encoder" else meta.own_padding
        of_keys = meta.own_padding if spec.kind == "causal" else meta.source_padding
        if of_queries is not None:
            q = q.index_select(0, of_queries.tokens)
        if of_keys is not None and k is not None and v is not None:
            k, v = k.index_select(0, of_keys.tokens), v.index_select(0, of_keys.tokens)
        if spec.kind == "encoder":
            keys, values = _rows(k, rows), _rows(v, rows)
        else:
            pages = meta.own if spec.kind == "causal" else meta.source
            keys, values = self._stored(layer, k, v, pages, rows)
        queries = _rows(q, rows)
        key = (spec.kind, spec.window, spec.alibi_slopes, id(bias))
        added = meta.once(key, lambda: self._added(spec, meta, queries.shape[1], keys.shape[1], bias))
        seen = meta.once((spec.kind, "seen"), lambda: _seen(spec, meta, keys.shape[1]))
        out = attend(spec, queries, keys, values.masked_fill(~seen, 0), added)
        return out if of_queries is None else out.index_select(0, of_queries.places)

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


class PaddedRows(NamedTuple):
    """Rows of a step on the host, as long as the longest."""

    tokens: npt.NDArray[np.int64]  #: [B, Q] among the step's T
    positions: npt.NDArray[np.int64]  #: [B, Q]; those of padding are that of the row's last token
    is_token: npt.NDArray[np.bool_]  #: [B, Q]


def pad_rows(starts: IntArray, first: IntArray) -> PaddedRows:
    """Rows whose tokens lie one after the other.

    Args:
        starts: [B + 1] the first token of each row; the last entry is T.
        first: [B] its position.
    """
    starts, first = starts.astype(np.int64), first.astype(np.int64)
    lengths = np.diff(starts)[:, None]
    columns = np.arange(max(1, int(lengths.max())))
    places = np.minimum(columns, np.maximum(lengths - 1, 0))
    tokens = np.minimum(starts[:-1, None] + places, max(0, int(starts[-1]) - 1))
    return PaddedRows(tokens, first[:, None] + places, columns < lengths)


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
