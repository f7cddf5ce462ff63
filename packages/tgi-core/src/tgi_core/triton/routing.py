"""Which experts a token uses.  A program chooses for one token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.launch import Kernel, indices
from tgi_core.triton.overlap import follow


@triton.jit
def _choose_experts(
    scores, weights, chosen, size: tl.constexpr, row_stride: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    SUMS_TO_ONE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One after the other, the lowest of equally likely ones first; where scores are no numbers, weights are none."""
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    x = tl.load(scores + token * row_stride + expert, mask=expert < size, other=float("-inf")).to(tl.float32)
    shares = tl.exp(x - tl.max(x))
    total = tl.sum(shares)
    left = tl.where(expert < size, shares, -1.0)
    place = tl.arange(0, KP)
    best = tl.zeros([KP], tl.float32)
    ids = tl.zeros([KP], tl.int32)
    for k in tl.static_range(K):
        most = tl.max(left)
        first = tl.minimum(tl.min(tl.where(left == most, expert, BLOCK)), size - 1)
        best = tl.where(place == k, most, best)
        ids = tl.where(place == k, first, ids)
        left = tl.where(expert == first, -1.0, left)
    if SUMS_TO_ONE:
        total = tl.where(total == total, tl.sum(best), total)
    tl.store(weights + token * K + place, best / total, mask=place < K)
    tl.store(chosen + token * K + place, ids.to(tl.int64), mask=place < K)


_CHOOSE_EXPERTS = Kernel(_choose_experts)


def choose_experts(scores: Tensor, each: int, sums_to_one: bool) -> tuple[Tensor, Tensor]:
    """See `Kernels.choose_experts`."""
    scores = scores if scores.stride(-1) == 1 else scores.contiguous()
    tokens, size = scores.shape
    weights = torch.empty((tokens, each), dtype=torch.float32, device=scores.device)
    chosen = indices(tokens, each, device=scores.device)
    if tokens:
        constants = {
            "size": size,
            "row_stride": scores.stride(0),
            "K": each,
            "KP": triton.next_power_of_2(each),
            "SUMS_TO_ONE": sums_to_one,
            "BLOCK": triton.next_power_of_2(size),
        }
        _CHOOSE_EXPERTS.launch((tokens, 1, 1), (scores, weights, chosen), constants, warps=1)
    return weights, chosen
