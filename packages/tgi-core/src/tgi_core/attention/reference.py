"""Paged attention in plain PyTorch, one sequence at a time: the meaning of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, AttentionSpec, StepInput
from tgi_core.kernels.ops import KernelQuery


class ReferenceAttention(AttentionBackend):
    """Keeps keys and values as [layers, 2, slots, Hkv, D]."""

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self.caches: list[Tensor] = []

    def block_bytes(self) -> int:
        elements = sum(2 * spec.kv_heads * spec.head_size for spec in self.specs)
        return elements * self.block_size * self.dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        slots = num_blocks * self.block_size
        self.caches = [torch.zeros(2, slots, s.kv_heads, s.head_size, dtype=self.dtype) for s in self.specs]

    def prepare(self, step: StepInput) -> list[tuple[slice, Tensor]]:
        """Per sequence: its rows of q, and the slots of its whole context."""
        meta = []
        for index, context in enumerate(step.context_lens):
            positions = torch.arange(int(context))
            blocks = torch.from_numpy(step.block_tables[index].astype("int64"))
            slots = blocks[positions // self.block_size] * self.block_size + positions % self.block_size
            meta.append((slice(int(step.query_starts[index]), int(step.query_starts[index + 1])), slots))
        return meta

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor, meta: list[tuple[slice, Tensor]]) -> Tensor:
        spec, cache = self.specs[layer], self.caches[layer]
        out = q.new_empty(q.shape)
        for rows, slots in meta:
            own = slots[len(slots) - (rows.stop - rows.start) :]
            cache[0, own], cache[1, own] = k[rows], v[rows]
        for rows, slots in meta:
            out[rows] = _attend(spec, q[rows], cache[0, slots], cache[1, slots])
        return out


def _attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [Q, H, D], k and v [S, Hkv, D] -> [Q, H, D]; the queries are the last Q of S positions."""
    group = spec.heads // spec.kv_heads
    keys, values = (t.float().repeat_interleave(group, dim=1).transpose(0, 1) for t in (k, v))  # [H, S, D]
    scores = q.float().transpose(0, 1) @ keys.transpose(1, 2) * spec.scale  # [H, Q, S]
    if spec.soft_cap:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    distance = torch.arange(len(k)) - torch.arange(len(k) - len(q), len(k)).unsqueeze(1)  # [Q, S], 0 = itself
    if spec.alibi_slopes:
        scores = scores + torch.tensor(spec.alibi_slopes).view(-1, 1, 1) * distance
    hidden = distance > 0
    if spec.window:
        hidden |= distance <= -spec.window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ values).transpose(0, 1).to(q.dtype)
