"""Temperature."""

from __future__ import annotations

from torch import Tensor

from tgi_core.sampling.processors.base import ParameterProcessor
from tgi_core.sampling.state import SamplingContext
from tgi_core.sampling_params import SamplingParams

LOWEST = 1e-6  #: below it nothing changes any more, and logits might leave float32's range


class Temperature(ParameterProcessor):
    """logits / temperature, for rows that sample."""

    batch_invariant = True

    parameter, neutral = "temperature", 1.0

    @classmethod
    def value(cls, params: SamplingParams) -> float:
        return max(params.temperature, LOWEST)

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return params.do_sample and super().wanted(params, context)

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.div_(self.values)
