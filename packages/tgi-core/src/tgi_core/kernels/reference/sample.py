"""Choosing tokens."""

from __future__ import annotations

from torch import Tensor


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the most likely tokens, and its log-softmax."""
    logprobs = logits.float().log_softmax(-1)
    ids = logits.argmax(-1)
    return ids, logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
