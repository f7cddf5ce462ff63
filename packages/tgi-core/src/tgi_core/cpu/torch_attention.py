"""Paged attention on the CPU in PyTorch: two padded batches a step, for hosts without the compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, AttentionSpec, CachePart, Int32Array, StepInput, bias_origin
from tgi_core.attention.cache_dtype import put, take
from tgi_core.kernels.ops import KernelQuery


def supports(query: KernelQuery) -> str:
    """Why this backend cannot serve a model."""
    return "PyTorch's scaled_dot_product_attention has no soft cap" if query.soft_cap else ""


@dataclass(frozen=True)
class _Batch:
    """Sequences of one step that are padded to one another: B of them, Q queries, S keys."""

    rows: Tensor  #: [B, Q] rows of q; padding repeats row 0
    real: Tensor  #: [B, Q] bool
    blocks: Tensor | None  #: [B, S / block_size]; None in an encoder, whose keys are rows of k as its queries are of q
    unused: Tensor  #: [B, S, 1, 1] bool; what lies there may be anything, NaN too
    distance: Tensor  #: [B, Q, S] key position minus query position


@dataclass(frozen=True)
class _Keys:
    """What the layers of one kind store and read."""

    slots: Tensor  #: [T or S] where k and v go
    batches: tuple[_Batch, ...]


@dataclass(frozen=True)
class _Metadata:
    causal: _Keys
    cross: _Keys | None
    encoder: _Batch | None


class TorchAttention(AttentionBackend):
    """Keeps keys and values as [blocks, block_size, Hkv, D]."""

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self.caches: dict[CachePart | None, tuple[Tensor, Tensor]] = {}

    def allocate(self, num_blocks: int) -> None:
        self._parts = self.cache_parts()
        for part in filter(None, self._parts):
            shape = (num_blocks, self.block_size, part.kv_heads, part.head_size)
            self.caches[part] = torch.zeros(shape, dtype=self.cache_dtype), torch.zeros(shape, dtype=self.cache_dtype)

    def prepare(self, step: StepInput) -> _Metadata:
        queries, source = _tensor(step.query_starts), step.source
        causal = self._keys(queries, queries, _tensor(step.context_lens), _tensor(step.block_tables))
        if source is None:
            return _Metadata(causal, None, None)
        starts = _tensor(source.starts)
        cross = self._keys(queries, starts, _tensor(source.lens), _tensor(source.block_tables))
        return _Metadata(causal, cross, _encoder_batch(starts) if starts[-1] else None)

    def _keys(self, queries: Tensor, new: Tensor, context: Tensor, tables: Tensor) -> _Keys:
        """Of sequences whose queries and new keys begin at these rows; new keys are the last of a context."""
        sequence = torch.repeat_interleave(new.diff())
        position = context[sequence] - new[1:][sequence] + torch.arange(len(sequence))
        block = tables[sequence, position // self.block_size]
        slots = block * self.block_size + position % self.block_size
        lengths = queries.diff()
        groups = ((lengths == 1).nonzero().squeeze(1), (lengths > 1).nonzero().squeeze(1))
        batches = (self._batch(g, queries, lengths, context, tables) for g in groups if len(g))
        return _Keys(slots, tuple(batches))

    def _batch(self, members: Tensor, starts: Tensor, lengths: Tensor, context: Tensor, tables: Tensor) -> _Batch:
        length, total = lengths[members].unsqueeze(1), context[members].unsqueeze(1)
        rows, real = _padded_rows(starts[members], length)
        width = -(-int(total.max()) // self.block_size)
        used = torch.arange(width).unsqueeze(0) * self.block_size < total
        keys = torch.arange(width * self.block_size)
        position = torch.where(real, total - length + torch.arange(rows.shape[1]), 0)
        blocks = torch.where(used, tables[members, :width], 0)
        return _Batch(rows, real, blocks, (keys >= total)[..., None, None], keys - position.unsqueeze(2))

    def forward(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, meta: _Metadata, bias: Tensor | None = None
    ) -> Tensor:
        spec = self.specs[layer]
        out = torch.empty(q.shape, dtype=q.dtype)
        if spec.kind == "encoder":
            if meta.encoder is not None and k is not None and v is not None:
                keys, values = k[meta.encoder.rows], v[meta.encoder.rows]
                _attend(spec, q, keys, values, meta.encoder, bias, out)
            return out
        own, (keys, values) = meta.causal if spec.kind == "causal" else meta.cross, self.caches[self._parts[layer]]
        if own is None:
            raise ValueError("cross-attention in a step without sources")
        if k is not None and v is not None:
            put(keys.view(-1, *keys.shape[2:]), own.slots, k)
            put(values.view(-1, *values.shape[2:]), own.slots, v)
        for batch in own.batches:
            k_seen, v_seen = (take(cache, batch.blocks, self.dtype).flatten(1, 2) for cache in (keys, values))
            _attend(spec, q, k_seen, v_seen, batch, bias, out)
        return out


def _tensor(array: Int32Array) -> Tensor:
    return torch.from_numpy(array).long()


def _padded_rows(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """starts [B], lengths [B, 1] -> the rows [B, Q] of each sequence, padded with row 0, and which are real."""
    offset = torch.arange(int(lengths.max())).unsqueeze(0)
    real = offset < lengths
    return torch.where(real, starts.unsqueeze(1) + offset, 0), real


def _encoder_batch(starts: Tensor) -> _Batch:
    """All sources that begin."""
    begins = starts.diff().nonzero().squeeze(1)
    rows, real = _padded_rows(starts[begins], starts.diff()[begins].unsqueeze(1))
    positions = torch.arange(rows.shape[1])
    return _Batch(rows, real, None, ~real[..., None, None], (positions - positions.unsqueeze(1)).unsqueeze(0))


def _attend(
    spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, batch: _Batch, bias: Tensor | None, out: Tensor
) -> None:
    """keys and values [B, S, Hkv, D] of a padded batch; fills the batch's rows of out [T, H, D]."""
    padded = F.scaled_dot_product_attention(
        q[batch.rows].transpose(1, 2),
        keys.masked_fill(batch.unused, 0).transpose(1, 2),
        values.masked_fill(batch.unused, 0).transpose(1, 2),
        attn_mask=_scores_bias(spec, batch, bias).to(q.dtype),
        scale=spec.scale,
        enable_gqa=True,
    )
    out[batch.rows[batch.real]] = padded.transpose(1, 2)[batch.real]


def _scores_bias(spec: AttentionSpec, batch: _Batch, bias: Tensor | None) -> Tensor:
    """What is added to the scores: [B, 1 or H, Q, S] of float32."""
    distance = batch.distance
    if spec.kind == "causal":
        hidden = distance > 0
        if spec.window:
            hidden |= distance <= -spec.window
    else:
        hidden = batch.unused[:, None, :, 0, 0]
    added = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf")).unsqueeze(1)
    if spec.alibi_slopes:
        slopes = torch.tensor(spec.alibi_slopes, dtype=torch.float32).view(1, -1, 1, 1)
        added = slopes * distance.unsqueeze(1) + added
    if bias is not None:
        columns = (distance + bias_origin(spec, bias.shape[1])).clamp(0, bias.shape[1] - 1)
        added = bias[:, columns].transpose(0, 1) + added
    return added
