"""The green-list watermark of arXiv 2301.10226, seeded with the previous token as TGI does."""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.sampling.processors.base import LogitsProcessor
from tgi_core.sampling.state import SamplingContext
from tgi_core.sampling_params import SamplingParams

HASH_KEY = 15485863  #: a large prime, TGI's


class Watermark(LogitsProcessor):
    """Adds delta to a share gamma of the vocabulary that the previous token determines."""

    batch_invariant = True

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return params.watermark

    def __call__(self, logits: Tensor) -> Tensor:
        previous = self.context.last_tokens[self.slots].tolist()
        for row, token in enumerate(previous):
            logits[row, self.green_list(token)] += self.context.watermark_delta
        return logits

    def green_list(self, previous: int) -> Tensor:
        """The favoured ids after `previous`."""
        generator = torch.Generator().manual_seed(HASH_KEY * previous)
        size = int(self.context.vocab_size * self.context.watermark_gamma)
        return torch.randperm(self.context.vocab_size, generator=generator)[:size].to(self.context.device)
