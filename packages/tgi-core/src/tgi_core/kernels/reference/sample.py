"""Choosing tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.kernels.ops import Penalties, TokenTables

HIDDEN = float("-inf")
LIKELY = 1024  #: tokens that are looked at before the whole vocabulary is sorted


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the most likely tokens, and its log-softmax."""
    logprobs = logits.float().log_softmax(-1)
    ids = logits.argmax(-1)
    return ids, logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def sample(logits: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invert the cumulative distribution."""
    total = logits.logsumexp(-1, keepdim=True)
    cumulative = (logits - total).exp().cumsum(-1, dtype=torch.float64)
    target = at.unsqueeze(-1) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[-1] - 1)
    ids = torch.where(at.unsqueeze(-1) < 0, logits.argmax(-1, keepdim=True), drawn)
    return ids.squeeze(-1), (logits.gather(-1, ids) - total).squeeze(-1), total.squeeze(-1)


def penalize(logits: Tensor, tables: TokenTables, slots: Tensor, penalties: Penalties) -> Tensor:
    """Repetition, frequency, presence."""
    repetition, frequency, presence = (values.unsqueeze(-1) for values in penalties)
    output = tables.output[slots]
    seen = (tables.prompt[slots] > 0) | (output > 0)
    divided = torch.where(logits < 0, logits * repetition, logits / repetition)
    return torch.where(seen, divided, logits) - output * frequency - (output > 0) * presence


def check_bitmask(logits: Tensor, allowed: Tensor) -> None:
    """Whether `Kernels.apply_bitmask` can take these.

    Raises:
        ValueError: says what is wrong.
    """
    (rows, size), words = logits.shape, allowed.shape[-1]
    if allowed.dtype is not torch.int32 or allowed.dim() != 2 or len(allowed) != rows or 32 * words < size:
        raise ValueError(
            f"logits of {rows} rows and {size} tokens need a mask [{rows}, {-(-size // 32)}] of int32, not "
            f"{list(allowed.shape)} of {allowed.dtype}"
        )


def apply_bitmask(logits: Tensor, allowed: Tensor) -> Tensor:
    """The bits of a word one after the other, the lowest first."""
    check_bitmask(logits, allowed)
    bits = allowed.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=allowed.device) & 1
    return logits.masked_fill_(bits.flatten(1)[:, : logits.shape[1]] == 0, HIDDEN)


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Tokens as likely as the k-th stay too."""
    threshold = logits.topk(int(k.max())).values.gather(1, k.unsqueeze(1) - 1)
    return logits.masked_fill_(logits < threshold, HIDDEN)


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """A few tokens are sorted first, as they are mostly enough."""
    total, p = logits.logsumexp(-1, keepdim=True), p.unsqueeze(-1)
    best = logits.topk(min(LIKELY, logits.shape[-1])).values
    reached = (best - total).exp().cumsum(-1)
    if bool((reached[:, -1:] < p).any()):
        best = logits.sort(-1, descending=True).values
        reached = (best - total).exp().cumsum(-1)
    last = (reached < p).sum(-1, keepdim=True).clamp_(max=best.shape[-1] - 1)
    return logits.masked_fill_(logits < best.gather(-1, last), HIDDEN)
