"""Penalties on tokens that were there before."""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.sampling.processors.base import ParameterProcessor
from tgi_core.sampling_params import SamplingParams

EXTREME = 1e6  #: a stronger repetition penalty decides nothing more, and logits might leave float32's range


class RepetitionPenalty(ParameterProcessor):
    """Tokens of prompt and output: positive logits divided, negative ones multiplied (arXiv 1909.05858)."""

    parameter, neutral = "repetition_penalty", 1.0

    @classmethod
    def value(cls, params: SamplingParams) -> float:
        return min(max(params.repetition_penalty, 1 / EXTREME), EXTREME)

    def __call__(self, logits: Tensor) -> Tensor:
        penalised = torch.where(logits < 0, logits * self.values, logits / self.values)
        return torch.where(self.context.counts.seen(self.slots), penalised, logits)


class FrequencyPenalty(ParameterProcessor):
    """Minus the penalty per occurrence in the output (OpenAI's API reference)."""

    parameter, neutral = "frequency_penalty", 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        return logits - self.context.counts.output(self.slots) * self.values


class PresencePenalty(ParameterProcessor):
    """Minus the penalty once for each token of the output (OpenAI's API reference)."""

    parameter, neutral = "presence_penalty", 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        return logits - (self.context.counts.output(self.slots) > 0) * self.values
