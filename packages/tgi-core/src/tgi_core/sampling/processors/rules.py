"""Tokens that the model itself forces or forbids; see `tgi_core.sampling.rules`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tgi_core.sampling.processors.base import LogitsProcessor
from tgi_core.sampling.state import SamplingContext, SlotState
from tgi_core.sampling_params import SamplingParams

HIDDEN = float("-inf")


class ForcedTokens(LogitsProcessor):
    """Leaves one token where the model's configuration wants it: the first after the decoder's start, or the last."""

    batch_invariant = True

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        rules = context.rules
        return rules.forced_bos is not None or (rules.forced_eos is not None and not params.ignore_eos)

    def __call__(self, logits: Tensor) -> Tensor:
        for row, state in enumerate(self.states):
            token = self._forced(state)
            if token is not None:
                logits[row] = HIDDEN
                logits[row, token] = 0.0
        return logits

    def _forced(self, state: SlotState) -> int | None:
        rules, params = self.context.rules, state.params
        if rules.forced_bos is not None and state.prompt_len + state.generated == 1:
            return rules.forced_bos
        is_last = state.generated == params.max_new_tokens - 1
        return rules.forced_eos if is_last and not params.ignore_eos else None


class SuppressedTokens(LogitsProcessor):
    """Hides tokens that the model's configuration forbids, everywhere or at the beginning."""

    batch_invariant = True

    def __init__(self, states: Sequence[SlotState], context: SamplingContext) -> None:
        super().__init__(states, context)
        rules = context.rules
        self.always = self.upload(rules.suppressed) if rules.suppressed else None
        self.at_begin = self.upload(rules.suppressed_at_begin) if rules.suppressed_at_begin else None

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return bool(context.rules.suppressed or context.rules.suppressed_at_begin)

    def __call__(self, logits: Tensor) -> Tensor:
        if self.always is not None:
            logits.index_fill_(1, self.always, HIDDEN)
        if self.at_begin is not None:
            for row, state in enumerate(self.states):
                was_forced = self.context.rules.forced_bos is not None and state.prompt_len == 1
                if state.generated == int(was_forced):
                    logits[row].index_fill_(0, self.at_begin, HIDDEN)
        return logits
