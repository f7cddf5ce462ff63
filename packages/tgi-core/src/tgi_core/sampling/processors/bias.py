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

    def __init__(self, states: Sequence[SlotState], context: SamplingContext) -> None:
        super().__init__(states, context)
        entries = [(row, *item) for row, state in enumerate(states) for item in state.params.logit_bias.items()]
        rows, ids, biases = zip(*entries, strict=True)
        self.index = (torch.tensor(rows, device=context.device), torch.tensor(ids, device=context.device))
        self.biases = torch.tensor(biases, dtype=torch.float32, device=context.device)

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return bool(params.logit_bias)

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.index_put_(self.index, self.biases, accumulate=True)


class MinimumLength(LogitsProcessor):
    """Forbids what would end a sequence until it has `min_new_tokens`."""

    def __init__(self, states: Sequence[SlotState], context: SamplingContext) -> None:
        super().__init__(states, context)
        self.ends = [
            [i for i in {*context.rules.eos, *state.params.stop_token_ids} if 0 <= i < context.vocab_size]
            for state in states
        ]

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return params.min_new_tokens > 0

    def __call__(self, logits: Tensor) -> Tensor:
        for row, (state, ends) in enumerate(zip(self.states, self.ends, strict=True)):
            if state.generated < state.params.min_new_tokens:
                logits[row, ends] = float("-inf")
        return logits
