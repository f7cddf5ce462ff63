"""Choosing tokens: when all parts of the logits are surveyed, a program for each row chooses by what was found."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.chip import row_warps
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow
from tgi_core.triton.parts import PART, amounts_of, numbers, parts_of, surveyed


@triton.jit
def _greedy(
    tops, firsts, masses, ids, logprobs, size: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """The first of the most likely tokens."""
    follow(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    top, highest, shares = amounts_of(tops, masses, row, part, True, PARTS)
    first = tl.load(firsts + row * PARTS + part, mask=part < PARTS, other=size)
    index = tl.min(tl.where(highest == top, first, size))
    tl.store(ids + row, tl.minimum(index, size - 1).to(tl.int64))
    tl.store(logprobs + row, tl.where(top == float("-inf"), float("nan"), -tl.log(tl.sum(shares))))


@triton.jit
def _draw(
    logits, at, tops, firsts, masses, ids, logprobs, totals, size: tl.constexpr, row_stride: tl.constexpr,
    PARTS: tl.constexpr, PADDED: tl.constexpr, PART: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The token in which the cumulative distribution passes `at`: only its part is read again."""
    follow(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    x_row = logits + row * row_stride
    top, highest, shares = amounts_of(tops, masses, row, part, True, PARTS)
    shares = shares.to(tl.float64)
    total = tl.sum(shares)
    where = tl.load(at + row)
    goal = where * total
    passed = tl.min(tl.where((tl.cumsum(shares, 0) > goal) & (shares > 0), part, PARTS))
    passed = tl.minimum(passed, tl.max(tl.where(shares > 0, part, 0)))  # rounding may leave none
    goal -= tl.sum(tl.where(part < passed, shares, 0.0))
    columns = passed * PART + tl.arange(0, PART)
    x = tl.load(x_row + columns, mask=columns < size, other=float("-inf"))
    weights = tl.exp(x - tl.where(top == float("-inf"), 0.0, top))
    drawn = tl.min(tl.where((tl.cumsum(weights, 0) > goal.to(tl.float32)) & (weights > 0), columns, size))
    drawn = tl.minimum(drawn, tl.max(tl.where(weights > 0, columns, 0)))
    first = tl.load(firsts + row * PARTS + part, mask=part < PARTS, other=size)
    index = tl.minimum(tl.where(where < 0, tl.min(tl.where(highest == top, first, size)), drawn), size - 1)
    normalizer = top + tl.log(total.to(tl.float32))
    tl.store(ids + row, index.to(tl.int64))
    tl.store(totals + row, normalizer)
    tl.store(logprobs + row, tl.load(x_row + index) - normalizer)


_GREEDY, _DRAW = Kernel(_greedy), Kernel(_draw)


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `Kernels.greedy`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    (rows, size), device = logits.shape, logits.device
    ids, logprobs = torch.empty(rows, dtype=torch.int64, device=device), numbers(device, rows)
    if rows:
        arguments = *surveyed(logits), ids, logprobs
        _GREEDY.launch((rows, 1, 1), arguments, {"size": size, **parts_of(size)}, warps=1)
    return ids, logprobs


def sample(logits: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `Kernels.sample`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    (rows, size), device = logits.shape, logits.device
    ids = torch.empty(rows, dtype=torch.int64, device=device)
    logprobs, totals = numbers(device, rows), numbers(device, rows)
    if rows:
        arguments = logits, at, *surveyed(logits), ids, logprobs, totals
        constants = {"size": size, "row_stride": logits.stride(0), **parts_of(size), "PART": PART}
        _DRAW.launch((rows, 1, 1), arguments, constants, warps=row_warps(device))
    return ids, logprobs, totals
