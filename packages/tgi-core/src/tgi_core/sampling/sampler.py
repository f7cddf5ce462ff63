"""Chooses the next token of every sequence in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tgi_core.request import TokenLogprob
from tgi_core.sampling.processors.base import LogitsProcessor
from tgi_core.sampling.randomness import uniforms
from tgi_core.sampling.state import SamplingContext, SlotState
from tgi_core.step import Admission

HIDDEN = -1e30  #: log-probability under which a token was filtered out


@dataclass(frozen=True)
class Choice:
    """The tokens of B rows, on the device."""

    ids: Tensor  #: [B] int64
    logprobs: Tensor  #: [B] float32
    top: tuple[Tensor, Tensor] | None = None  #: log-probabilities and ids [B, n] of the most likely tokens
    top_counts: tuple[int, ...] = ()  #: how many of them each row asked for

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What `with_tensors` takes."""
        return (self.ids, self.logprobs, *(self.top or ()))

    def with_tensors(self, ids: Tensor, logprobs: Tensor, *top: Tensor) -> Choice:
        """The same in other memory."""
        return Choice(ids, logprobs, (top[0], top[1]) if top else None, self.top_counts)

    @property
    def top_logprobs(self) -> list[list[TokenLogprob]]:
        """The most likely tokens of each row that asked for them, without filtered ones."""
        if self.top is None:
            return [[]] * len(self.ids)
        rows = zip(self.top_counts, self.top[0].tolist(), self.top[1].tolist(), strict=True)
        return [
            [TokenLogprob(token, logprob) for logprob, token in zip(values, ids, strict=True) if logprob > HIDDEN][:n]
            for n, values, ids in rows
        ]


@dataclass(frozen=True)
class _Batch:
    """One composition of a batch, and what to do for it each step."""

    states: tuple[SlotState, ...]
    processors: tuple[tuple[Tensor | None, LogitsProcessor], ...]  #: rows [n], or None for all of them; processor
    sampled_rows: tuple[int, ...]
    counted: tuple[Tensor, Tensor] | None  #: see `TokenCounts.counted`
    most_top: int
    plain: Tensor | None = None  #: rows [n] without anything else, which get what `Sampler.greedy` gives everywhere

    @property
    def is_plain(self) -> bool:
        """Greedy without anything else."""
        return not self.processors and not self.sampled_rows and not self.most_top


class Sampler:
    """Holds the sampling state of all slots.

    A sampled token depends on its row's logits, seed and place in the output only, so a seed gives the same tokens
    whatever else is in the batch, and after a preemption.

    Args:
        processors: in the order in which they change logits.
    """

    def __init__(self, context: SamplingContext, processors: Sequence[type[LogitsProcessor]]) -> None:
        self.context, self.kernels, self.processors = context, context.kernels, tuple(processors)
        self._states: dict[int, SlotState] = {}
        self._batch: _Batch | None = None

    def admit(self, admission: Admission) -> None:
        """A sequence takes a slot."""
        generated = len(admission.tokens) - admission.prompt_len
        prompt = admission.tokens[: admission.prompt_len]
        self._states[admission.slot] = SlotState(admission.slot, admission.params, admission.seed, generated, prompt)
        self.context.counts.admit(admission)

    def state(self, slot: int) -> SlotState:
        """The sequence in a slot."""
        return self._states[slot]

    def sample(self, logits: Tensor, slots: Sequence[int]) -> Choice:
        """logits [B, V] of these slots, which may be overwritten -> one token each."""
        batch = self._batch_of(slots)
        choice = self.greedy(logits) if batch.is_plain else self._agreed(self._choose(batch, logits))
        self._note(batch, choice)
        return choice

    def greedy(self, logits: Tensor) -> Choice:
        """logits [B, V] -> the most likely tokens; no sequence is noted to have them."""
        return self._agreed(Choice(*self.kernels.greedy(logits)))

    def _agreed(self, choice: Choice) -> Choice:
        """With rank 0's tokens: ranks that went on from different ones would never agree again."""
        return replace(choice, ids=self.context.group.from_first(choice.ids))

    def logprobs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """logits [B, V], tokens [B] int64 -> [B] float32"""
        logits, at = logits.float(), tokens.unsqueeze(-1)
        if not self.context.deterministic:
            return logits.log_softmax(-1).gather(-1, at).squeeze(-1)
        nowhere = torch.full((len(logits),), -1.0, dtype=torch.float64, device=logits.device)
        _, _, total = self.kernels.sample(logits, nowhere)
        return logits.gather(-1, at).squeeze(-1) - total

    def is_plain(self, slots: Sequence[int]) -> bool:
        """Whether `sample` does for these slots nothing but `greedy`."""
        return self._batch_of(slots).is_plain

    def chosen(self, slots: Sequence[int], choice: Choice) -> None:
        """Note the tokens that these slots, which are `is_plain`, were given without `sample`."""
        self._note(self._batch_of(slots), choice)

    def _note(self, batch: _Batch, choice: Choice) -> None:
        if batch.counted:
            self.context.counts.add(batch.counted, choice.ids)
        for state in batch.states:
            state.generated += 1

    def _batch_of(self, slots: Sequence[int]) -> _Batch:
        states = tuple(self._states[slot] for slot in slots)
        if self._batch is None or self._batch.states != states:
            self._batch = self._compose(states)
        return self._batch

    def _compose(self, states: tuple[SlotState, ...]) -> _Batch:
        processors: list[tuple[Tensor | None, LogitsProcessor]] = []
        for processor in self.processors:
            rows = [row for row, state in enumerate(states) if processor.wanted(state.params, self.context)]
            if self.context.deterministic and not processor.batch_invariant:
                processors += [
                    (self.context.upload(np.array([row])), processor([states[row]], self.context)) for row in rows
                ]
            elif rows:
                some = self.context.upload(np.array(rows)) if len(rows) < len(states) else None
                processors.append((some, processor([states[row] for row in rows], self.context)))
        return _Batch(
            states,
            tuple(processors),
            tuple(row for row, state in enumerate(states) if state.samples),
            self.context.counts.counted(states),
            max(state.params.top_n_tokens for state in states),
            self._plain(states) if self.context.deterministic else None,
        )

    def _plain(self, states: tuple[SlotState, ...]) -> Tensor | None:
        rows = [
            row
            for row, state in enumerate(states)
            if not state.samples
            and not state.params.top_n_tokens
            and not any(processor.wanted(state.params, self.context) for processor in self.processors)
        ]
        return self.context.upload(np.array(rows)) if rows else None

    def _process(self, batch: _Batch, logits: Tensor) -> Tensor:
        for rows, processor in batch.processors:
            if rows is None:
                logits = processor(logits)
            else:
                logits[rows] = processor(logits[rows])
        return logits

    def _choose(self, batch: _Batch, logits: Tensor) -> Choice:
        greedy = self.kernels.greedy(logits) if batch.plain is not None else ()
        logits = self._process(batch, logits.float())
        at = self.context.upload(_draws(batch))
        ids, chosen, total = self.kernels.sample(logits, at)
        for found, known in zip((ids, chosen), greedy, strict=False):
            found[batch.plain] = known[batch.plain]
        if not batch.most_top:
            return Choice(ids, chosen)
        counts = tuple(state.params.top_n_tokens for state in batch.states)
        values, best = self._top(logits, counts)
        return Choice(ids, chosen, (values - total.unsqueeze(-1), best), counts)

    def _top(self, logits: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The largest of each row, and their ids: [B, n]; which come first of equal ones may depend on the batch."""
        most = min(max(counts), logits.shape[-1])
        if not self.context.deterministic:
            found = logits.topk(most)
            return found.values, found.indices
        values = logits.new_full((len(counts), most), float("-inf"))
        ids = torch.zeros((len(counts), most), dtype=torch.int64, device=logits.device)
        for row, count in enumerate(counts):
            if wanted := min(count, most):
                values[row, :wanted], ids[row, :wanted] = logits[row].topk(wanted)
        return values, ids


def _draws(batch: _Batch) -> npt.NDArray[np.float64]:
    """Where each row's distribution is inverted, negative for rows that do not sample: [B]."""
    at = np.full(len(batch.states), -1.0)
    rows = list(batch.sampled_rows)
    states = [batch.states[row] for row in rows]
    at[rows] = uniforms([state.seed for state in states], [state.generated for state in states])
    return at
