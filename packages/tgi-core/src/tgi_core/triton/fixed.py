"""Metadata in memory that stays where it is, which recorded steps read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tgi_core.attention.base import Int32Array, StepInput
from tgi_core.triton.cut import Cut, cut
from tgi_core.triton.packed import Packed, aligned, arange
from tgi_core.triton.step import CAUSAL_WIDTH, INFO, KeysOf, Metadata, Parts, StepBuilder, Tiles


class FixedDecodes:
    """Of decodes.

    Args:
        rows: sequences; those that a step does not have are padding, which has no keys.
        width: blocks of the longest sequence.
        cross: the model attends to sources too.
    """

    def __init__(self, rows: int, width: int, splits: int, device: torch.device, *, cross: bool) -> None:
        self.rows, self.device = rows, device
        self._source: tuple[Int32Array, ...] = ()  # that are there
        kinds = ("causal", "cross") if cross else ("causal",)
        self._memory = {
            kind: torch.zeros(INFO + aligned(rows) + aligned(rows * width), dtype=torch.int32, device=device)
            for kind in kinds
        }
        starts, *_ = _packed(arange(rows + 1)).copy_to(device)
        self.metadata: Metadata = {
            kind: KeysOf(
                info=memory[:INFO],
                width_at=CAUSAL_WIDTH,
                lens=memory[INFO : INFO + rows],
                tables=memory[INFO + aligned(rows) :],
                query_starts=starts,
                members=starts[:rows],
                decodes=rows,
                splits=splits,
                settled=True,
            )
            for kind, memory in self._memory.items()
        }

    def fill(self, step: StepInput) -> None:
        """Take over a step of decodes, at most `rows` of them."""
        self._fill("causal", step.context_lens, step.block_tables)
        if step.source is not None:
            source = step.source.lens, step.source.block_tables
            if not (self._source and all(map(np.array_equal, source, self._source))):  # mostly they stay the same
                self._fill("cross", *source)
                self._source = source

    def clear(self) -> None:
        """Only padding."""
        self._source = ()
        for memory in self._memory.values():
            memory.zero_()

    def _fill(self, kind: str, lens: Int32Array, tables: Int32Array) -> None:
        info, padded = np.zeros(INFO, dtype=np.int32), np.zeros(self.rows, dtype=np.int32)
        info[CAUSAL_WIDTH], padded[: len(lens)] = tables.shape[1], lens
        _packed(info, padded, tables).copy_to(self.device, self._memory[kind])


class FixedMixtures:
    """Of any mixture of prompts, chunks and decodes, for decoders without sources.

    The row behind the last one has no tokens and no keys: members and tiles that a step does not have are its.
    """

    def __init__(self, rows: int, tokens: int, width: int, splits: int, builder: StepBuilder) -> None:
        self.rows, self.tokens, self.builder = rows, tokens, builder
        few = [size for size in builder.few_tokens if 2 * tokens <= builder.most_parts * size]
        whole = builder.tile_tokens if len(few) < len(builder.few_tokens) or not few else ()  # keys lie in blocks
        sizes = [INFO, rows + 1, rows + 2, rows, tokens]
        sizes += [rows + tokens // size for size in whole for _ in range(2)]
        sizes += [max(rows + tokens // size, builder.most_parts) for size in few for _ in Cut._fields]
        self._memory, (info, lens, starts, members, self._slots, *cuts, tables) = _laid_out(
            [*sizes, rows * width], builder.device
        )
        arrays = iter(cuts)
        self._tiles = {size: Tiles(*islice(arrays, 2)) for size in whole}
        self._few = {size: Parts(*islice(arrays, len(Cut._fields)), room=builder.most_parts) for size in few}
        self.metadata: Metadata = {
            "causal": KeysOf(
                info=info,
                width_at=CAUSAL_WIDTH,
                lens=lens,
                tables=tables,
                query_starts=starts,
                members=members,
                decodes=0 if builder.in_order else rows,
                splits=splits,
                slots=self._slots,
                tiles=self._tiles,
                few=self._few,
            )
        }

    def fill(self, step: StepInput) -> None:
        """Take over a step of at most `rows` sequences and `tokens` tokens."""
        lengths, tables = np.diff(step.query_starts), step.block_tables
        info = np.zeros(INFO, dtype=np.int32)
        info[CAUSAL_WIDTH] = tables.shape[1]
        slots = self.builder.slots_of(step.query_starts, step.context_lens, tables)
        singles, in_tiles = self.builder.divided(lengths)
        arrays = [
            info,
            _padded(step.context_lens, self.rows + 1, 0),
            _padded(step.query_starts, self.rows + 2, step.num_tokens),
            _padded(singles, self.rows, self.rows),
            _padded(slots, self.tokens, -1),
        ]
        for size, tiles in self._tiles.items():
            found = cut(in_tiles, step.context_lens, size, 0, is_causal=True)
            arrays += [_padded(found.sequence, tiles.count, self.rows), _padded(found.start, tiles.count, 0)]
        for size, few in self._few.items():
            found = cut(in_tiles, step.context_lens, size, few.room, is_causal=True)
            arrays += [_padded(found.sequence, few.count, self.rows), _padded(found.start, few.count, 0)]
            arrays += [_padded(found.part, few.count, 0), _padded(found.parts, few.count, 1)]
        _packed(*arrays, tables).copy_to(self.builder.device, self._memory)

    def clear(self) -> None:
        """Only padding."""
        self._memory.zero_()
        self._slots.fill_(-1)
        for few in self._few.values():
            few.parts.fill_(1)


class FixedSources:
    """Of sources that begin, which an encoder reads before the step of their decoder.

    The source behind the last one has no tokens: tiles that a step does not have are its.
    """

    def __init__(self, rows: int, tokens: int, builder: StepBuilder) -> None:
        self.rows, self.tokens, self.builder = rows, tokens, builder
        sizes = [INFO, rows + 1, rows + 2, tokens]
        sizes += [rows + tokens // size for size in builder.tile_tokens for _ in range(2)]
        self._memory, (info, lens, starts, self._slots, *cuts) = _laid_out(sizes, builder.device)
        arrays, none = iter(cuts), self._memory[:0]
        self._tiles = {size: Tiles(*islice(arrays, 2)) for size in builder.tile_tokens}
        keys = KeysOf(info, CAUSAL_WIDTH, lens, none, starts, none, decodes=0)
        self.metadata: Metadata = {
            "encoder": replace(keys, key_starts=starts, tiles=self._tiles),
            "cross": replace(keys, slots=self._slots),
        }

    def fill(self, step: StepInput) -> None:
        """Take over at most `rows` sources of a step that begin, of `tokens` tokens together."""
        if (source := step.source) is None:
            raise ValueError("this step has no sources")
        lengths = np.diff(source.starts)
        lens = lengths[lengths > 0]
        slots = self.builder.slots_of(source.starts, source.lens, source.block_tables)
        starts = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
        arrays = [
            np.zeros(INFO, dtype=np.int32),
            _padded(lens, self.rows + 1, 0),
            _padded(starts, self.rows + 2, int(starts[-1])),
            _padded(slots, self.tokens, -1),
        ]
        for size, tiles in self._tiles.items():
            found = cut(lens, lens, size, 0, is_causal=False)
            arrays += [_padded(found.sequence, tiles.count, self.rows), _padded(found.start, tiles.count, 0)]
        _packed(*arrays).copy_to(self.builder.device, self._memory)

    def clear(self) -> None:
        """Only padding."""
        self._memory.zero_()
        self._slots.fill_(-1)


def _laid_out(sizes: Sequence[int], device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Memory of zeros, and arrays of these sizes in it, as `Packed` copies them there."""
    places = np.cumsum([0, *map(aligned, sizes)]).tolist()
    memory = torch.zeros(places[-1], dtype=torch.int32, device=device)
    return memory, [memory[place : place + size] for place, size in zip(places[:-1], sizes, strict=True)]


def _padded(array: npt.NDArray[Any], size: int, value: int) -> Int32Array:
    out = np.full(size, value, dtype=np.int32)
    out[: len(array)] = array
    return out


def _packed(*arrays: Int32Array) -> Packed:
    packed = Packed()
    for array in arrays:
        packed.add(array)
    return packed
