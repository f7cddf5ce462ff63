"""The plain runner: one forward pass per plan, called layer by layer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, ForwardContext, StepInput
from tgi_core.device.backend import DeviceBackend, Download
from tgi_core.errors import RanksApart
from tgi_core.models.base import LanguageModel
from tgi_core.runner.base import Handle, Runner
from tgi_core.runner.slots import SlotTables, positions
from tgi_core.sampling.sampler import Choice, Sampler
from tgi_core.step import Admission, Row, RowResult, StepPlan, StepResult

log = logging.getLogger(__name__)

LOGPROB_ROWS = 128  #: prompt positions whose logits exist at a time


@dataclass(frozen=True)
class Launched:
    """A batch that the device computes, and what of it comes to the host."""

    results: list[RowResult]  #: of its rows; what the device brings is filled in by `collect`
    sampled: list[int]  #: the rows that get tokens
    choice: Choice | None  #: of those
    scored: list[tuple[int, int]]  #: rows whose prompt's log-probabilities are asked for, and how many tensors each has
    download: Download

    def collect(self) -> list[RowResult]:
        """Wait for the device."""
        self.download.wait()
        tensors = list(self.download.tensors)
        if self.choice is not None:
            count = len(self.choice.tensors)
            self._add_tokens(self.choice.with_tensors(*tensors[:count]))
            tensors = tensors[count:]
        for row, count in self.scored:
            self.results[row].prompt_logprobs = torch.cat(tensors[:count]).tolist()
            tensors = tensors[count:]
        return self.results

    def _add_tokens(self, choice: Choice) -> None:
        tokens, logprobs = choice.ids.tolist(), choice.logprobs.tolist()
        for row, token, logprob, top in zip(self.sampled, tokens, logprobs, choice.top_logprobs, strict=True):
            result = self.results[row]
            result.token_id, result.logprob, result.top_logprobs = token, logprob, top
            if math.isnan(logprob):
                result.error = "no token can be chosen: its probabilities are not numbers (NaN)"


class LaunchedHandle(Handle):
    """A step in one or more batches."""

    def __init__(self, plan: StepPlan, batches: Sequence[Launched], failed: list[RowResult], started: float) -> None:
        self._plan, self._batches, self._failed, self._started = plan, batches, failed, started

    def done(self) -> bool:
        return all(batch.download.done() for batch in self._batches)

    def result(self) -> StepResult:
        results = [result for batch in self._batches for result in batch.collect()] + self._failed
        if len(self._batches) != 1 or self._failed:  # not in the order of the plan
            found = {result.sequence_id: result for result in results}
            results = [found[row.sequence_id] for row in self._plan.rows]
        return StepResult(results, time.perf_counter() - self._started)


class EagerRunner(Runner):
    """Asks for nothing but PyTorch; whether `submit` waits for the device is up to the device."""

    def __init__(
        self,
        model: LanguageModel,
        attention: AttentionBackend,
        sampler: Sampler,
        slots: SlotTables,
        backend: DeviceBackend,
    ) -> None:
        self.model, self.attention, self.sampler, self.slots, self.backend = model, attention, sampler, slots, backend
        self.group = sampler.context.group

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> Handle:
        started = time.perf_counter()
        self.slots.update(plan)
        failed = {admission.sequence_id: error for admission in plan.admissions if (error := self._admit(admission))}
        healthy = tuple(row for row in plan.rows if row.sequence_id not in failed) if failed else plan.rows
        failures = [RowResult(sequence_id, error=error) for sequence_id, error in failed.items()]
        batches = self._launch_or_isolate(healthy, failures) if healthy else []
        return LaunchedHandle(plan, batches, failures, started)

    def _admit(self, admission: Admission) -> str:
        """Why a sequence cannot be sampled; "" if it can."""
        try:
            with self.group.together("the admission of a sequence"):
                self.sampler.admit(admission)
        except RanksApart:
            raise
        except Exception as error:
            log.exception("a sequence could not be admitted")
            return f"{type(error).__name__}: {error}"
        return ""

    def _launch_or_isolate(self, rows: tuple[Row, ...], failures: list[RowResult]) -> list[Launched]:
        """Run a batch; if that fails, run its rows one by one, so that only the guilty ones fail."""
        try:
            with self.group.together(f"a step of {len(rows)} rows"):
                return [self._launch(rows)]
        except RanksApart:
            raise
        except Exception as error:
            if len(rows) == 1:
                log.exception("a step of one row failed")
                failures.append(RowResult(rows[0].sequence_id, error=f"{type(error).__name__}: {error}"))
                return []
            log.warning("a step of %d rows failed (%s); running them one by one", len(rows), error)
        return [batch for row in rows for batch in self._launch_or_isolate((row,), failures)]

    def _launch(self, rows: tuple[Row, ...]) -> Launched:
        return self._launch_eagerly(rows, self.slots.step_input(rows))

    def _launch_eagerly(self, rows: tuple[Row, ...], step: StepInput) -> Launched:
        context = ForwardContext(
            self.backend.upload(positions(step)), self.attention.prepare(step), self.slots.encoder_input(rows)
        )
        hidden = self.model(self.slots.input_ids(rows), context)
        ends = step.query_starts[1:]
        scores = self._prompt_logprobs(rows, ends.tolist(), hidden)
        wanted = [index for index, row in enumerate(rows) if row.wants_token]
        choice = None
        if wanted:
            if len(hidden) != len(wanted):
                hidden = hidden[self.backend.upload(ends[wanted].astype(np.int64) - 1)]
            choice = self._sample([rows[index] for index in wanted], self.model.logits(hidden))
        return self._launched(rows, wanted, choice, scores)

    def _launched(
        self, rows: tuple[Row, ...], sampled: list[int], choice: Choice | None, scores: dict[int, list[Tensor]]
    ) -> Launched:
        tensors = [*(choice.tensors if choice else ()), *(part for parts in scores.values() for part in parts)]
        counts = [(row, len(parts)) for row, parts in scores.items()]
        results = [RowResult(row.sequence_id) for row in rows]
        return Launched(results, sampled, choice, counts, self.backend.download(tensors))

    def _sample(self, rows: Sequence[Row], logits: Tensor) -> Choice:
        """Choose after the logits [B, V] of each row."""
        choice = self.sampler.sample(logits, [row.slot for row in rows])
        self.slots.last_tokens[self.slots.slots(rows)] = choice.ids
        return choice

    def _prompt_logprobs(self, rows: tuple[Row, ...], ends: list[int], hidden: Tensor) -> dict[int, list[Tensor]]:
        """Log-probabilities of the prompt tokens that follow each row's, where a request asked for them."""
        found = {}
        for index, (row, end) in enumerate(zip(rows, ends, strict=True)):
            if self._wants_prompt_logprobs(row):
                following = self.sampler.state(row.slot).prompt[row.start + 1 : row.start + 1 + row.length]
                found[index] = self._logprobs(hidden[end - row.length : end], following)
        return found

    def _wants_prompt_logprobs(self, row: Row) -> bool:
        state = self.sampler.state(row.slot)
        return state.params.prompt_logprobs and row.start < state.prompt_len - 1

    def _logprobs(self, hidden: Tensor, following: tuple[int, ...]) -> list[Tensor]:
        found = []
        for start in range(0, len(following), LOGPROB_ROWS):
            tokens = self.backend.upload(np.array(following[start : start + LOGPROB_ROWS], dtype=np.int64))
            found.append(self.sampler.logprobs(self.model.logits(hidden[start : start + len(tokens)]), tokens))
        return found
