"""Filters: tokens outside a set get -inf.  At least the most likely token stays."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tgi_core.sampling.processors.base import ParameterProcessor
from tgi_core.sampling.state import SamplingContext, SlotState
from tgi_core.sampling_params import SamplingParams

HIDDEN = float("-inf")


class SampledFilter(ParameterProcessor):
    """A filter that greedy rows do not need: they choose its most likely token anyway."""

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return params.do_sample and super().wanted(params, context)


class TopK(SampledFilter):
    """Keeps the k most likely tokens, and those as likely as the k-th."""

    batch_invariant = True

    parameter, neutral = "top_k", 0

    def __init__(self, states: Sequence[SlotState], context: SamplingContext) -> None:
        super().__init__(states, context)
        self.k = self.values.squeeze(1).long().clamp_(max=context.vocab_size)

    def __call__(self, logits: Tensor) -> Tensor:
        return self.context.kernels.top_k(logits, self.k)


class TopP(SampledFilter):
    """Keeps the smallest set of most likely tokens whose probability reaches p (arXiv 1904.09751)."""

    batch_invariant = True

    parameter, neutral = "top_p", 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        return self.context.kernels.top_p(logits, self.values.squeeze(1))


class MinP(SampledFilter):
    """Keeps tokens at least min_p times as likely as the most likely one (arXiv 2407.01082)."""

    batch_invariant = True

    parameter, neutral = "min_p", 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        threshold = logits.amax(-1, keepdim=True) + self.values.log()
        return logits.masked_fill_(logits < threshold, HIDDEN)


class TypicalP(SampledFilter):
    """Keeps the tokens whose information is nearest the entropy, up to a mass of p (arXiv 2202.00666)."""

    parameter, neutral = "typical_p", 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).nansum(-1, keepdim=True)
        distance = (-logprobs - entropy).abs()
        order = distance.sort(dim=-1).indices
        before = logprobs.gather(-1, order).softmax(-1).cumsum(-1)
        last = (before < self.values).sum(-1, keepdim=True).clamp_(max=logits.shape[-1] - 1)
        threshold = distance.gather(-1, order.gather(-1, last))
        return logits.masked_fill_(distance > threshold, HIDDEN)
