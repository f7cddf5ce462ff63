"""Choosing tokens.  A program reads the logits of one row once, in parts of BLOCK."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.chip import row_warps
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow

BLOCK = 8192


@triton.jit
def _greedy(
    logits, ids, logprobs, size: tl.constexpr, row_stride: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    follow(OVERLAP)
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
        _GREEDY.launch((len(logits), 1, 1), (logits, ids, logprobs), constants, warps=row_warps(logits.device))
    return ids, logprobs


@triton.jit
def _sample(
    logits, at, ids, logprobs, totals, size: tl.constexpr, row_stride: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """What each part holds is noted, so that only the one that is drawn from is read again."""
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    x_row = logits + row * row_stride
    part = tl.arange(0, PARTS)
    tops = tl.full([PARTS], float("-inf"), tl.float32)
    masses = tl.zeros([PARTS], tl.float32)  # as a share of each part's most likely token
    for number in range(0, tl.cdiv(size, BLOCK)):
        columns = number * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_row + columns, mask=columns < size, other=float("-inf"))
        most = tl.max(tl.where(x == x, x, float("-inf")))
        mass = tl.sum(tl.exp(x - tl.where(most == float("-inf"), 0.0, most)))
        tops = tl.where(part == number, most, tops)
        masses = tl.where(part == number, mass, masses)
    top = tl.max(tops)
    shift = tl.where(top == float("-inf"), 0.0, top)
    shares = (masses * tl.exp(tops - shift)).to(tl.float64)
    total = tl.sum(shares)
    where = tl.load(at + row)
    goal = where * total
    passed = tl.min(tl.where((tl.cumsum(shares, 0) > goal) & (shares > 0), part, PARTS))
    passed = tl.minimum(passed, tl.max(tl.where(shares > 0, part, 0)))  # rounding may leave none
    chosen = tl.where(where < 0, tl.min(tl.where(tops == top, part, PARTS)), passed)
    goal -= tl.sum(tl.where(part < chosen, shares, 0.0))
    columns = chosen * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_row + columns, mask=columns < size, other=float("-inf"))
    weights = tl.exp(x - shift)
    drawn = tl.min(tl.where((tl.cumsum(weights, 0) > goal.to(tl.float32)) & (weights > 0), columns, size))
    drawn = tl.minimum(drawn, tl.max(tl.where(weights > 0, columns, 0)))
    first = tl.min(tl.where((x == top) & (columns < size), columns, size))
    index = tl.minimum(tl.where(where < 0, first, drawn), size - 1)
    normalizer = top + tl.log(total.to(tl.float32))
    tl.store(ids + row, index.to(tl.int64))
    tl.store(totals + row, normalizer)
    tl.store(logprobs + row, tl.load(x_row + index) - normalizer)


_SAMPLE = Kernel(_sample)


def sample(logits: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `Kernels.sample`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    rows, size = logits.shape
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprobs, totals = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    if rows:
        parts = triton.next_power_of_2(triton.cdiv(size, BLOCK))
        constants = {"size": size, "row_stride": logits.stride(0), "PARTS": parts, "BLOCK": BLOCK}
        _SAMPLE.launch((rows, 1, 1), (logits, at, ids, logprobs, totals), constants, warps=row_warps(logits.device))
    return ids, logprobs, totals
