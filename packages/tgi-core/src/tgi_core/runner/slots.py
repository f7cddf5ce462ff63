"""Per-slot state that lives as long as a sequence: its block table and its last token."""

from __future__ import annotations

import numpy as np
import torch

from tgi_core.attention.base import StepInput
from tgi_core.step import Row, StepPlan


class SlotTables:
    """Block tables on the host, last tokens on the device; updated, never rebuilt."""

    def __init__(self, slots: int, blocks_per_sequence: int, device: torch.device) -> None:
        self._tables = np.zeros((slots, blocks_per_sequence), dtype=np.int32)
        self._lengths = np.zeros(slots, dtype=np.int64)
        self.last_tokens = torch.zeros(slots, dtype=torch.int64, device=device)

    def update(self, plan: StepPlan) -> None:
        """Take over what a plan says of slots and blocks."""
        for admission in plan.admissions:
            self._lengths[admission.slot] = 0
            self.last_tokens[admission.slot] = admission.tokens[-1]
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
        query_starts = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(lengths, out=query_starts[1:])
        width = int(self._lengths[slots].max())
        return StepInput(query_starts, starts + lengths, self._tables[slots, :width])

    def input_ids(self, rows: tuple[Row, ...]) -> torch.Tensor:
        """The tokens of these rows: [T] int64; those still on the device are not waited for."""
        if all(row.tokens is None for row in rows):
            return self.last_tokens[[row.slot for row in rows]]
        host: list[int] = []
        late: list[tuple[int, int]] = []
        for row in rows:
            if row.tokens is None:
                late.append((len(host), row.slot))
                host.append(0)
            else:
                host.extend(row.tokens)
        ids = torch.tensor(host, dtype=torch.int64, device=self.last_tokens.device)
        if late:
            at, slots = torch.tensor(late, device=ids.device).unbind(1)
            ids[at] = self.last_tokens[slots]
        return ids


def positions(step: StepInput) -> torch.Tensor:
    """The position of every token of a step: [T] int64."""
    lengths = np.diff(step.query_starts)
    first = step.context_lens - lengths - step.query_starts[:-1]
    return torch.from_numpy(np.repeat(first, lengths).astype(np.int64) + np.arange(step.num_tokens))
