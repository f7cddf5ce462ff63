"""Runs models whose sequences share the column of the cache that is written next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tgi_core.runner.base import Handle
from tgi_core.runner.eager import EagerRunner, Launched
from tgi_core.stats import EngineInfo
from tgi_core.step import Row, StepPlan
from tgi_gaudi.backend import StaticBackend
from tgi_gaudi.optimum.model import SlotModel
from tgi_gaudi.optimum.steps import PromptScores, SlotDecode, SlotPrefill, SlotRoll
from tgi_gaudi.shapes import shapes_for

log = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]


class SlotRunner(EagerRunner):
    """Prompts are read some at a time, and end at the column where all others end; decodes write the next one.

    Where no column is left, all sequences move to the left.  A plan has either whole prompts or decodes, and those of
    every sequence that lives: one that is left out has ended.
    """

    model: SlotModel
    backend: StaticBackend

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        wrap = self.backend.wrap
        prefill = SlotPrefill(self.model)
        self._prefill: nn.Module = prefill if self.backend.settings.limit_hpu_graph else wrap(prefill)
        self._decode: nn.Module = wrap(SlotDecode(self.model))
        self._roll: nn.Module = wrap(SlotRoll(self.model))
        self._scores = PromptScores(self.model)  # rarely asked for: not recorded
        self._last_token: dict[int, int] = {}  # slot -> the token that it sampled last

    def warm_up(self, info: EngineInfo, progress: Callable[[float, str], None]) -> None:
        settings = self.backend.settings
        self.shapes = shapes_for(settings, batch_size=info.max_batch_size, longest=info.max_input_tokens)
        self._seen = np.zeros((info.max_batch_size, self.model.columns), np.int64)  # by slot: which columns are its own
        self._end = self.shapes.prompt_lengths[-1]  # the column that is written next
        if settings.warmup_enabled:
            self._warm_up(progress)

    @torch.inference_mode()
    def _warm_up(self, progress: Callable[[float, str], None]) -> None:
        """Run every shape once, on padding alone."""
        lengths, batches = self.shapes.prompt_lengths, self.shapes.decode_rows
        total, done = len(lengths) + len(batches) + 1, 0
        for length in lengths:
            rows = self.shapes.prefill_rows
            progress(done / total, f"{rows} prompts of {length} tokens, {done + 1} of {total} shapes")
            self._prefill(**self._upload(self._prompt_input((), rows, length)))
            done += 1
        for rows in batches:
            progress(done / total, f"decodes of {rows} rows, {done + 1} of {total} shapes")
            self._decode(**self._upload(self._decode_input((), rows)))
            done += 1
        self._roll(columns=self.backend.upload(np.arange(self.model.columns)))
        self.backend.synchronize()
        log.info("warmed up %d shapes", total)

    # ---- steps ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> Handle:
        if plan.kind == "decode":
            ended = np.ones(len(self._seen), dtype=bool)
            ended[[row.slot for row in plan.rows]] = False
            self._seen[ended] = 0
        return super().submit(plan)

    def _launch(self, rows: tuple[Row, ...]) -> Launched:
        if all(row.start == 0 for row in rows):
            logits, scores = self._read(rows)
        else:
            logits, scores = self._step(rows), {}
        launched = self._launched(rows, list(range(len(rows))), self._sample(rows, logits), scores)
        for row, result in zip(rows, launched.collect(), strict=True):
            if result.token_id is not None:
                self._last_token[row.slot] = result.token_id
        return launched

    def _read(self, rows: tuple[Row, ...]) -> tuple[Tensor, dict[int, list[Tensor]]]:
        """The logits [B, V] after whole prompts, and log-probabilities of the prompts that are asked for."""
        length = self.shapes.prompt_length_for(max(row.length for row in rows))
        given = self._prompt_input(rows, self.shapes.prefill_rows, length)
        logits = self._prefill(**self._upload(given)).to(self.backend.sampling_device)[: len(rows)]
        for row in rows:
            self._seen[row.slot] = 0
            self._seen[row.slot, self._end - row.length : self._end] = 1
        return logits, {i: self._score(row, length) for i, row in enumerate(rows) if self._wants_prompt_logprobs(row)}

    def _score(self, row: Row, length: int) -> list[Tensor]:
        text = self._texts((row,), 1, length)
        following = np.zeros((1, length), np.int64)
        following[0, length - row.length : -1] = text["ids"][0, length - row.length + 1 :]
        found = self._scores(**self._upload({**text, "following": following})).to(self.backend.sampling_device)
        return [found[0, length - row.length : -1]]

    def _step(self, rows: tuple[Row, ...]) -> Tensor:
        """The logits [B, V] after one more token of each."""
        if self._end == self.model.columns:
            self._make_room()
        batch = self.shapes.decode_rows_for(1 + max(row.slot for row in rows))
        logits = self._decode(**self._upload(self._decode_input(rows, batch))).to(self.backend.sampling_device)
        slots = [row.slot for row in rows]
        self._seen[slots, self._end] = 1
        self._end += 1
        return logits[slots]

    def _make_room(self) -> None:
        """Move all sequences to the left, as far as the longest of them and the longest prompt allow."""
        used = np.flatnonzero(self._seen.any(0))
        first = int(used[0]) if len(used) else self._end
        by = min(first, self._end - self.shapes.prompt_lengths[-1])
        if by <= 0:
            raise RuntimeError("no column of the cache is left; a sequence is longer than --max-total-tokens")
        columns = (np.arange(self.model.columns) + by) % self.model.columns
        self._roll(columns=self.backend.upload(columns))
        self._seen = np.ascontiguousarray(self._seen[:, columns])
        self._end -= by

    # ---- inputs ---------------------------------------------------------------------------------------------------

    def _upload(self, given: dict[str, Int64Array]) -> dict[str, Tensor]:
        return {name: self.backend.upload(array) for name, array in given.items()}

    def _decode_input(self, rows: tuple[Row, ...], batch: int) -> dict[str, Int64Array]:
        ids, positions = np.zeros((batch, 1), np.int64), np.zeros((batch, 1), np.int64)
        mask = self._seen[:batch].copy()
        mask[:, min(self._end, self.model.columns - 1)] = 1  # slots without a sequence see what they write
        for row in rows:
            ids[row.slot] = self._last_token[row.slot] if row.tokens is None else row.tokens[0]
            positions[row.slot] = row.start
        return {"ids": ids, "mask": mask, "positions": positions, "end": np.array(self._end + 1)}

    def _prompt_input(self, rows: tuple[Row, ...], batch: int, length: int) -> dict[str, Int64Array]:
        slots = np.full(batch, self.slots.padding_slot, np.int64)
        slots[: len(rows)] = [row.slot for row in rows]
        token = np.arange(self.model.columns) - (self._end - length)  # that goes into each column
        columns = np.where((token >= 0) & (token < length), token, length)
        return {**self._texts(rows, batch, length), "slots": slots, "columns": columns}

    def _texts(self, rows: Sequence[Row], batch: int, length: int) -> dict[str, Int64Array]:
        """Prompts padded on the left; rows that pad the batch see their last token."""
        ids, mask, positions = (np.zeros((batch, length), np.int64) for _ in range(3))
        mask[:, -1] = 1
        for index, row in enumerate(rows):
            first = length - row.length
            ids[index, first:], mask[index, first:] = row.tokens or (), 1
            positions[index, first:] = np.arange(row.length)
        return {"ids": ids, "mask": mask, "positions": positions}
