"""Paged attention on the CPU in PyTorch: two padded batches a step, for hosts without the compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, AttentionSpec, StepInput
from tgi_core.kernels.ops import KernelQuery


def supports(query: KernelQuery) -> str:
    """Why this backend cannot serve a model."""
    return "PyTorch's scaled_dot_product_attention has no soft cap" if query.soft_cap else ""


@dataclass(frozen=True)
class _Batch:
    """Sequences of one step that are padded to one another: B of them, Q queries, S keys."""

    rows: Tensor  #: [B, Q] rows of q; padding repeats row 0
    real: Tensor  #: [B, Q] bool
    blocks: Tensor  #: [B, S / block_size]
    unused: Tensor  #: [B, S, 1, 1] bool; what lies there may be anything, NaN too
    distance: Tensor  #: [B, Q, S] key position minus query position


@dataclass(frozen=True)
class _Metadata:
    slots: Tensor  #: [T] where k and v go
    batches: tuple[_Batch, ...]


class TorchAttention(AttentionBackend):
    """Keeps keys and values as [blocks, block_size, Hkv, D]."""

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self.caches: list[tuple[Tensor, Tensor]] = []

    def block_bytes(self) -> int:
        elements = sum(2 * spec.kv_heads * spec.head_size for spec in self.specs)
        return elements * self.block_size * self.dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        self.caches = []
        for spec in self.specs:
            shape = (num_blocks, self.block_size, spec.kv_heads, spec.head_size)
            self.caches.append((torch.zeros(shape, dtype=self.dtype), torch.zeros(shape, dtype=self.dtype)))

    def prepare(self, step: StepInput) -> _Metadata:
        starts, context = (torch.from_numpy(a).long() for a in (step.query_starts, step.context_lens))
        tables = torch.from_numpy(step.block_tables).long()
        lengths = starts.diff()
        sequence = torch.repeat_interleave(lengths)
        position = context[sequence] - starts[1:][sequence] + torch.arange(len(sequence))
        block = tables[sequence, position // self.block_size]
        slots = block * self.block_size + position % self.block_size
        groups = ((lengths == 1).nonzero().squeeze(1), (lengths > 1).nonzero().squeeze(1))
        batches = (self._batch(g, starts, lengths, context, tables) for g in groups if len(g))
        return _Metadata(slots, tuple(batches))

    def _batch(self, members: Tensor, starts: Tensor, lengths: Tensor, context: Tensor, tables: Tensor) -> _Batch:
        length, total = lengths[members].unsqueeze(1), context[members].unsqueeze(1)
        offset = torch.arange(int(length.max())).unsqueeze(0)
        real = offset < length
        rows = torch.where(real, starts[members].unsqueeze(1) + offset, 0)
        width = -(-int(total.max()) // self.block_size)
        used = torch.arange(width).unsqueeze(0) * self.block_size < total
        keys = torch.arange(width * self.block_size)
        position = torch.where(real, total - length + offset, 0)
        blocks = torch.where(used, tables[members, :width], 0)
        return _Batch(rows, real, blocks, (keys >= total)[..., None, None], keys - position.unsqueeze(2))

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor, meta: _Metadata) -> Tensor:
        spec, (keys, values) = self.specs[layer], self.caches[layer]
        keys.view(-1, *keys.shape[2:])[meta.slots] = k
        values.view(-1, *values.shape[2:])[meta.slots] = v
        out = torch.empty(q.shape, dtype=q.dtype)
        for batch in meta.batches:
            padded = F.scaled_dot_product_attention(
                q[batch.rows].transpose(1, 2),
                _gather(keys, batch),
                _gather(values, batch),
                attn_mask=_bias(spec, batch.distance, q.dtype),
                scale=spec.scale,
                enable_gqa=True,
            )
            out[batch.rows[batch.real]] = padded.transpose(1, 2)[batch.real]
        return out


def _gather(cache: Tensor, batch: _Batch) -> Tensor:
    """Keys or values of the padded batch: [B, Hkv, S, D]."""
    return cache[batch.blocks].flatten(1, 2).masked_fill_(batch.unused, 0).transpose(1, 2)


def _bias(spec: AttentionSpec, distance: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: [B, 1 or H, Q, S]."""
    hidden = distance > 0
    if spec.window:
        hidden |= distance <= -spec.window
    bias = torch.zeros(distance.shape, dtype=dtype).masked_fill(hidden, float("-inf")).unsqueeze(1)
    if spec.alibi_slopes:
        slopes = torch.tensor(spec.alibi_slopes, dtype=torch.float32).view(1, -1, 1, 1)
        bias = (slopes * distance.unsqueeze(1)).to(dtype) + bias
    return bias
