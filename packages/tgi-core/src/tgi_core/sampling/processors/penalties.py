"""Penalties on tokens that were there before."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tgi_core.kernels import ops
from tgi_core.sampling.processors.base import LogitsProcessor
from tgi_core.sampling.state import SamplingContext, SlotState, needs_counts
from tgi_core.sampling_params import SamplingParams

EXTREME = 1e6  #: a stronger repetition penalty decides nothing more, and logits might leave float32's range


class Penalties(LogitsProcessor):
    """Repetition, frequency and presence penalties."""

    batch_invariant = True

    def __init__(self, states: Sequence[SlotState], context: SamplingContext) -> None:
        super().__init__(states, context)
        repetition = self.column(lambda params: min(max(params.repetition_penalty, 1 / EXTREME), EXTREME))
        frequency = self.column(lambda params: params.frequency_penalty)
        presence = self.column(lambda params: params.presence_penalty)
        self.penalties = ops.Penalties(repetition.squeeze(1), frequency.squeeze(1), presence.squeeze(1))

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return needs_counts(params)

    def __call__(self, logits: Tensor) -> Tensor:
        return self.context.kernels.penalize(logits, self.context.counts.tables, self.slots, self.penalties)
