"""Paged attention with this device's own cache layout: keys lie transposed, as its matrix units read them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from tgi_core.attention.base import AttentionBackend, AttentionSpec, CachePart, StepInput
from tgi_core.kernels.ops import KernelQuery
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """A step's metadata.  Letters: T tokens, B sequences, W blocks of the longest."""

    rows: Tensor  #: [T] each token's sequence
    positions: Tensor  #: [T]
    slots: Tensor  #: [T] where its key and value go: block * block_size + place
    tables: Tensor  #: [B, W]


class FixedStep:
    """The same in memory that stays where it is.  What a step has less is padding: it uses a block of nobody's.

    Args:
        rows, tokens, width: B, T and W of the compiled shape.
        nobody: the block that padding writes to.
    """

    def __init__(self, rows: int, tokens: int, width: int, block_size: int, nobody: int) -> None:
        self.block_size, self.nobody = block_size, nobody
        flat = (torch.zeros(tokens, dtype=torch.int64) for _ in range(3))
        self.metadata = Step(*flat, torch.zeros(rows + 1, width, dtype=torch.int64))
        self.clear()

    def fill(self, step: StepInput) -> None:
        """Take over a step of at most `rows` sequences and `tokens` tokens."""
        self.clear()
        found, fixed, tokens = read(step, self.block_size), self.metadata, step.num_tokens
        fixed.rows[:tokens], fixed.positions[:tokens], fixed.slots[:tokens] = found.rows, found.positions, found.slots
        fixed.tables[: len(found.tables), : found.tables.shape[1]] = found.tables

    def clear(self) -> None:
        """Only padding."""
        self.metadata.rows.fill_(len(self.metadata.tables) - 1)
        self.metadata.positions.zero_()
        self.metadata.slots.fill_(self.nobody * self.block_size)
        self.metadata.tables.zero_()  # read but not seen, so it has to hold numbers: nobody's block may not


def read(step: StepInput, block_size: int) -> Step:
    """The metadata of a step."""
    lengths = np.diff(step.query_starts)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    first = step.context_lens - lengths - step.query_starts[:-1]
    positions = np.repeat(first, lengths) + np.arange(step.num_tokens)
    slots = step.block_tables[rows, positions // block_size].astype(np.int64) * block_size + positions % block_size
    arrays = (rows, positions, slots, step.block_tables)
    return Step(*(torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in arrays))


class ExampleVendorAttention(AttentionBackend):
    """Keeps keys as [blocks, Hkv, D, block_size] and values as [blocks, Hkv, block_size, D]."""

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self._caches: dict[CachePart | None, tuple[Tensor, Tensor]] = {}

    def allocate(self, num_blocks: int) -> None:
        self._parts, self._nobody = self.cache_parts(), num_blocks
        for part in self._parts:
            if part:
                keys = torch.zeros(num_blocks + 1, part.kv_heads, part.head_size, self.block_size, dtype=self.dtype)
                self._caches[part] = keys, torch.zeros_like(keys).transpose(2, 3).contiguous()

    def prepare(self, step: StepInput) -> Step:
        return read(step, self.block_size)

    def fixed(self, rows: int, tokens: int | None, width: int, variant: int) -> FixedStep:
        return FixedStep(rows, tokens or rows, width, self.block_size, self._nobody)

    def forward(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, meta: Step, bias: Tensor | None = None
    ) -> Tensor:
        spec, (keys, values) = self.specs[layer], self._caches[self._parts[layer]]
        block, place = meta.slots // self.block_size, meta.slots % self.block_size
        if k is not None and v is not None:
            keys[block, :, :, place], values[block, :, place] = k, v
        tables = meta.tables[meta.rows]  # [T, W]
        k_all = keys[tables].permute(0, 2, 3, 1, 4).flatten(3)  # [T, Hkv, D, W block_size]
        v_all = values[tables].transpose(1, 2).flatten(2, 3)  # [T, Hkv, W block_size, D]
        grouped = q.unflatten(1, (spec.kv_heads, -1))  # [T, Hkv, G, D]
        scores = grouped.float() @ k_all.float() * spec.scale  # [T, Hkv, G, W block_size]
        hidden = self._hidden(spec, meta, scores.shape[-1])  # left there by another sequence, maybe not numbers
        scores = scores + self._added(spec, meta, hidden, bias)
        weights = scores.masked_fill(hidden[:, None, None], -math.inf).softmax(-1)
        return (weights @ v_all.float().masked_fill(hidden[:, None, :, None], 0)).flatten(1, 2).to(q.dtype)

    def _hidden(self, spec: AttentionSpec, meta: Step, keys: int) -> Tensor:
        """Whether a token does not see a key: [T, keys]"""
        distance = torch.arange(keys) - meta.positions[:, None]
        hidden = distance > 0
        if spec.window:
            hidden |= distance <= -spec.window
        return hidden

    def _added(self, spec: AttentionSpec, meta: Step, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """What is added to scores: ALiBi, and a bias by distance."""
        distance = torch.arange(hidden.shape[1]) - meta.positions[:, None]
        added = torch.zeros(distance.shape)[:, None]  # [T, 1, keys]
        if spec.alibi_slopes:
            added = added + torch.tensor(spec.alibi_slopes)[:, None] * distance[:, None]
        if bias is not None:
            added = added + bias[:, (distance + bias.shape[1] - 1).clamp(0, bias.shape[1] - 1)].transpose(0, 1)
        heads = added.expand(-1, spec.heads, -1)
        return heads.unflatten(1, (spec.kv_heads, -1))
