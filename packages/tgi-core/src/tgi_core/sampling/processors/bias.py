"""Logits that a request shifts or forbids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tgi_core.sampling.processors.base import LogitsProcessor
from tgi_core.sampling.state import SamplingContext, SlotState
from tgi_core.sampling_params import SamplingParams


class LogitBias(LogitsProcessor):
    """Adds each request's biases."""

    batch_invariant = True

    def __init__(self, states: Sequence[SlotState], context: SamplingContext) -> None:
        super().__init__(states, context)
        entries = [(row, *item) for row, state in enumerate(states) for item in state.params.logit_bias.items()]
        rows, ids, biases = zip(*entries, strict=True)
        self.index = self.upload(rows), self.upload(ids)
        self.biases = self.upload(biases, torch.float32)

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return bool(params.logit_bias)

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.index_put_(self.index, self.biases, accumulate=True)


class MinimumLength(LogitsProcessor):
    """Forbids what would end a sequence until it has `min_new_tokens`."""

    batch_invariant = True

    def __init__(self, states: Sequence[SlotState], context: SamplingContext) -> None:
        super().__init__(states, context)
        self.ends = [
            [i for i in {*context.rules.eos, *state.params.stop_token_ids} if 0 <= i < context.vocab_size]
            for state in states
        ]
        self._short: tuple[int, ...] = ()  #: rows
        self._index: tuple[Tensor, ...] | None = None  #: rows and tokens that these forbid

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return params.min_new_tokens > 0

    def __call__(self, logits: Tensor) -> Tensor:
        short = tuple(row for row, s in enumerate(self.states) if s.generated < s.params.min_new_tokens)
        if short != self._short:
            entries = [(row, end) for row in short for end in self.ends[row]]
            self._short, self._index = short, self.upload(entries).unbind(1) if entries else None
        return logits if self._index is None else logits.index_put_(self._index, self.hidden)
