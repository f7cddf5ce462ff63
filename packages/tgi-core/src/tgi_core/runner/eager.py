"""The plain runner: one forward pass per plan, called layer by layer."""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, ForwardContext
from tgi_core.models.base import LanguageModel
from tgi_core.runner.base import FinishedHandle, Handle, Runner
from tgi_core.runner.slots import SlotTables, positions
from tgi_core.sampling.sampler import Sampler
from tgi_core.step import Admission, Row, RowResult, StepPlan, StepResult

log = logging.getLogger(__name__)

LOGPROB_ROWS = 128  #: prompt positions whose logits exist at a time


class EagerRunner(Runner):
    """For devices that work while they are called."""

    def __init__(self, model: LanguageModel, attention: AttentionBackend, sampler: Sampler, slots: SlotTables) -> None:
        self.model, self.attention, self.sampler, self.slots = model, attention, sampler, slots

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> Handle:
        started = time.perf_counter()
        self.slots.update(plan)
        failed = {admission.sequence_id: error for admission in plan.admissions if (error := self._admit(admission))}
        healthy = tuple(row for row in plan.rows if row.sequence_id not in failed)
        found = {result.sequence_id: result for result in (self._run_or_isolate(healthy) if healthy else [])}
        found |= {sequence_id: RowResult(sequence_id, error=error) for sequence_id, error in failed.items()}
        results = [found[row.sequence_id] for row in plan.rows]
        return FinishedHandle(StepResult(results, time.perf_counter() - started))

    def _admit(self, admission: Admission) -> str:
        """Why a sequence cannot be sampled; "" if it can."""
        try:
            self.sampler.admit(admission)
        except Exception as error:
            log.exception("a sequence could not be admitted")
            return f"{type(error).__name__}: {error}"
        return ""

    def _run_or_isolate(self, rows: tuple[Row, ...]) -> list[RowResult]:
        """Run a batch; if that fails, run its rows one by one, so that only the guilty ones fail."""
        try:
            return self._run(rows)
        except Exception as error:
            if len(rows) == 1:
                log.exception("a step of one row failed")
                return [RowResult(rows[0].sequence_id, error=f"{type(error).__name__}: {error}")]
            log.warning("a step of %d rows failed (%s); running them one by one", len(rows), error)
        return [result for row in rows for result in self._run_or_isolate((row,))]

    def _run(self, rows: tuple[Row, ...]) -> list[RowResult]:
        step = self.slots.step_input(rows)
        context = ForwardContext(positions(step), self.attention.prepare(step), self.slots.encoder_input(rows))
        hidden = self.model(self.slots.input_ids(rows), context)
        results = [RowResult(row.sequence_id) for row in rows]
        ends = step.query_starts[1:].tolist()
        self._add_prompt_logprobs(rows, ends, hidden, results)
        wanted = [index for index, row in enumerate(rows) if row.wants_token]
        if wanted:
            last = hidden if len(hidden) == len(wanted) else hidden[[ends[index] - 1 for index in wanted]]
            self._add_tokens([rows[index] for index in wanted], last, [results[index] for index in wanted])
        return results

    def _add_tokens(self, rows: list[Row], hidden: Tensor, results: list[RowResult]) -> None:
        """Sample after the last hidden state [B, N] of each row."""
        slots = [row.slot for row in rows]
        choice = self.sampler.sample(self.model.logits(hidden), slots)
        self.slots.last_tokens[slots] = choice.ids
        tokens: list[int] = choice.ids.tolist()
        for result, token, logprob, top in zip(results, tokens, choice.logprobs, choice.top_logprobs, strict=True):
            result.token_id, result.logprob, result.top_logprobs = token, logprob, top
            if math.isnan(logprob):
                result.error = "no token can be chosen: its probabilities are not numbers (NaN)"

    def _add_prompt_logprobs(
        self, rows: tuple[Row, ...], ends: list[int], hidden: Tensor, results: list[RowResult]
    ) -> None:
        """Log-probabilities of the prompt tokens that follow each row's, where a request asked for them."""
        for row, end, result in zip(rows, ends, results, strict=True):
            state = self.sampler.state(row.slot)
            if state.params.prompt_logprobs and row.start < state.prompt_len - 1:
                following = state.prompt[row.start + 1 : row.start + 1 + row.length]
                result.prompt_logprobs = self._logprobs(hidden[end - row.length : end], following)

    def _logprobs(self, hidden: Tensor, following: tuple[int, ...]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(following), LOGPROB_ROWS):
            tokens = torch.tensor(following[start : start + LOGPROB_ROWS], device=hidden.device)
            logprobs = self.model.logits(hidden[start : start + len(tokens)]).float().log_softmax(-1)
            found += logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
        return found
