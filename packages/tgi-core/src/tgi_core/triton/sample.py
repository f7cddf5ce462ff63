"""Choosing tokens.  A program reads the logits of one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.launch import Kernel

BLOCK = 8192


@triton.jit
def _greedy(logits, ids, logprobs, size: tl.constexpr, row_stride: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    best = float("-inf")
    index = size
    total = 0.0
    for start in range(0, size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * row_stride + columns, mask=columns < size, other=float("-inf")).to(tl.float32)
        known = tl.where(x == x, x, float("-inf"))  # comparisons with NaN are not to hide other numbers
        most = tl.max(known)
        first = tl.min(tl.where((known == most) & (columns < size), columns, size))
        index = tl.where(most > best, first, index)
        higher = tl.maximum(best, most)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(best - shift) + tl.sum(tl.exp(x - shift))
        best = higher
    tl.store(ids + row, tl.minimum(index, size - 1).to(tl.int64))
    tl.store(logprobs + row, tl.where(best == float("-inf"), float("nan"), -tl.log(total)))


_GREEDY = Kernel(_greedy)


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `Kernels.greedy`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if len(logits):
        constants = {"size": logits.shape[1], "row_stride": logits.stride(0), "BLOCK": BLOCK}
        _GREEDY.launch((len(logits), 1, 1), (logits, ids, logprobs), constants, warps=16)
    return ids, logprobs
