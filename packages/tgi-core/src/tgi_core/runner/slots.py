"""Per-slot state that lives as long as a sequence: its block tables, its last token, and its source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tgi_core.attention.base import EncoderInput, Int32Array, SourceInput, StepInput
from tgi_core.device.backend import DeviceBackend
from tgi_core.step import Row, StepPlan


class SlotTables:
    """Block tables on the host, last tokens on the device; updated, never rebuilt."""

    def __init__(self, slots: int, blocks_per_sequence: int, backend: DeviceBackend) -> None:
        self.padding_slot, self.blocks_per_sequence = slots, blocks_per_sequence
        self._tables = np.zeros((slots, blocks_per_sequence), dtype=np.int32)
        self._lengths = np.zeros(slots, dtype=np.int64)
        self._sources = _Sources(slots, blocks_per_sequence)
        self.upload, self.device = backend.upload, backend.torch_device
        self._upload_for_sampling = backend.upload_for_sampling
        #: [slots + 1] with `padding_slot`, which belongs to rows that pad a batch
        self.last_tokens = torch.zeros(slots + 1, dtype=torch.int64, device=backend.sampling_device)

    def update(self, plan: StepPlan) -> None:
        """Take over what a plan says of slots and blocks."""
        for admission in plan.admissions:
            self._lengths[admission.slot] = 0
            self._sources.put(admission.slot, admission.source, admission.source_blocks)
        if plan.admissions:
            last = [(admission.slot, admission.tokens[-1]) for admission in plan.admissions]
            slots, tokens = self._upload_for_sampling(np.array(last, dtype=np.int64)).unbind(1)
            self.last_tokens[slots] = tokens
        for row in plan.rows:
            if row.new_blocks:
                start = self._lengths[row.slot]
                self._tables[row.slot, start : start + len(row.new_blocks)] = row.new_blocks
                self._lengths[row.slot] = start + len(row.new_blocks)

    def step_input(self, rows: tuple[Row, ...]) -> StepInput:
        """These rows as attention backends see them."""
        slots = [row.slot for row in rows]
        lengths = np.fromiter((row.length for row in rows), dtype=np.int32, count=len(rows))
        starts = np.fromiter((row.start for row in rows), dtype=np.int32, count=len(rows))
        width = int(self._lengths[slots].max())
        source = self._sources.step_input(slots, starts == 0)
        return StepInput(offsets(lengths), starts + lengths, self._tables[slots, :width], source)

    def encoder_input(self, rows: tuple[Row, ...]) -> EncoderInput | None:
        """The sources of the rows that begin."""
        sources = self.sources(rows)
        if not sources:
            return None
        ids, positions = map(self.upload, in_a_row(sources))
        return EncoderInput(ids, positions, tuple(map(len, sources)))

    def sources(self, rows: tuple[Row, ...]) -> list[tuple[int, ...]]:
        """The tokens of those of the rows that begin, and have a source."""
        return self._sources.of([row.slot for row in rows if row.start == 0])

    def slots(self, rows: Iterable[Row]) -> torch.Tensor:
        """The slots of these rows, where tokens are chosen: [B] int64."""
        return self._upload_for_sampling(np.array([row.slot for row in rows], dtype=np.int64))

    def input_ids(self, rows: tuple[Row, ...]) -> torch.Tensor:
        """The tokens of these rows: [T] int64; those still on the device are not waited for."""
        if all(row.tokens is None for row in rows):
            return self.last_tokens[self.slots(rows)].to(self.device)
        host: list[int] = []
        late: list[tuple[int, int]] = []
        for row in rows:
            if row.tokens is None:
                late.append((len(host), row.slot))
                host.append(0)
            else:
                host.extend(row.tokens)
        ids = self.upload(np.array(host, dtype=np.int64))
        if late:
            at, slots = self.upload(np.array(late, dtype=np.int64)).unbind(1)
            ids[at] = self.last_tokens[slots.to(self.last_tokens.device)].to(self.device)
        return ids


class _Sources:
    """What encoders read, by slot, and the blocks that it takes; nothing where a model has no encoder."""

    def __init__(self, slots: int, blocks_per_sequence: int) -> None:
        self._tokens: list[tuple[int, ...]] = [()] * slots
        self._lens = np.zeros(slots, dtype=np.int32)
        self._tables = np.zeros((slots, blocks_per_sequence), dtype=np.int32)
        self._widths = np.zeros(slots, dtype=np.int64)

    def put(self, slot: int, source: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        """Take over a sequence's source."""
        self._tokens[slot], self._lens[slot], self._widths[slot] = source, len(source), len(blocks)
        self._tables[slot, : len(blocks)] = blocks

    def step_input(self, slots: Sequence[int], begins: npt.NDArray[np.bool_]) -> SourceInput | None:
        """The sources of these slots; of those that begin the encoder reads all tokens."""
        lens = self._lens[slots]
        if not lens.any():
            return None
        return SourceInput(offsets(lens * begins), lens, self._tables[slots, : int(self._widths[slots].max())])

    def of(self, slots: Sequence[int]) -> list[tuple[int, ...]]:
        """The tokens of these slots' sources, of those that have one."""
        return [self._tokens[slot] for slot in slots if self._tokens[slot]]


def offsets(lengths: Int32Array) -> Int32Array:
    """Where each of B parts begins, and where the last one ends: [B + 1]."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def in_a_row(sources: Sequence[tuple[int, ...]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids and positions of sources, at least one, one after the other: [S] each."""
    ids = np.array([token for source in sources for token in source], dtype=np.int64)
    return ids, np.concatenate([np.arange(len(source)) for source in sources])


def positions(step: StepInput) -> npt.NDArray[np.int64]:
    """The position of every token of a step: [T]."""
    lengths = np.diff(step.query_starts)
    first = step.context_lens - lengths - step.query_starts[:-1]
    return np.repeat(first, lengths).astype(np.int64) + np.arange(step.num_tokens)
