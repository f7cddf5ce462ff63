"""Choosing tokens: programs look at parts of each row of logits, then one for each row chooses by what they found."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.chip import row_warps
from tgi_core.triton.launch import ALIGNMENT, Kernel, indices
from tgi_core.triton.overlap import follow

BLOCK = 4096  #: logits of a part


@triton.jit
def _survey(
    logits, tops, firsts, masses, size: tl.constexpr, row_stride: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """A part's highest logit, where it is first, and the mass of all as a share of its own: each [B, parts]."""
    follow(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = part * BLOCK + tl.arange(0, BLOCK)
    there = columns < size
    x = tl.load(logits + row * row_stride + columns, mask=there, other=float("-inf")).to(tl.float32)
    known = tl.where(x == x, x, float("-inf"))  # comparisons with NaN are not to hide other numbers
    top = tl.max(known)
    at = row * tl.num_programs(1) + part
    tl.store(tops + at, top)
    tl.store(firsts + at, tl.min(tl.where((known == top) & there, columns, size)))
    tl.store(masses + at, tl.sum(tl.exp(x - tl.where(top == float("-inf"), 0.0, top))))


@triton.jit
def _put_together(tops, firsts, masses, row, part, size: tl.constexpr, PARTS: tl.constexpr):
    """The highest logit of a row, where it is first, and the masses of its parts as a share of it [PADDED]."""
    at, there = row * PARTS + part, part < PARTS
    highest = tl.load(tops + at, mask=there, other=float("-inf"))
    top = tl.max(highest)
    first = tl.min(tl.where(highest == top, tl.load(firsts + at, mask=there, other=size), size))
    shift = tl.where(top == float("-inf"), 0.0, top)
    return top, first, tl.load(masses + at, mask=there, other=0.0) * tl.exp(highest - shift)


@triton.jit
def _greedy(
    tops, firsts, masses, ids, logprobs, size: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """The first of the most likely tokens."""
    follow(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    top, first, shares = _put_together(tops, firsts, masses, row, part, size, PARTS)
    tl.store(ids + row, first.to(tl.int64))
    tl.store(logprobs + row, tl.where(top == float("-inf"), float("nan"), -tl.log(tl.sum(shares))))


@triton.jit
def _draw(
    logits, at, tops, firsts, masses, ids, logprobs, totals, size: tl.constexpr, row_stride: tl.constexpr,
    PARTS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Only the part that is drawn from is read again."""
    follow(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    x_row = logits + row * row_stride
    top, first, shares = _put_together(tops, firsts, masses, row, part, size, PARTS)
    shares = shares.to(tl.float64)
    total = tl.sum(shares)
    where = tl.load(at + row)
    goal = where * total
    passed = tl.min(tl.where((tl.cumsum(shares, 0) > goal) & (shares > 0), part, PARTS))
    passed = tl.minimum(passed, tl.max(tl.where(shares > 0, part, 0)))  # rounding may leave none
    goal -= tl.sum(tl.where(part < passed, shares, 0.0))
    columns = passed * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_row + columns, mask=columns < size, other=float("-inf"))
    weights = tl.exp(x - tl.where(top == float("-inf"), 0.0, top))
    drawn = tl.min(tl.where((tl.cumsum(weights, 0) > goal.to(tl.float32)) & (weights > 0), columns, size))
    drawn = tl.minimum(drawn, tl.max(tl.where(weights > 0, columns, 0)))
    index = tl.minimum(tl.where(where < 0, first, drawn), size - 1)
    normalizer = top + tl.log(total.to(tl.float32))
    tl.store(ids + row, index.to(tl.int64))
    tl.store(totals + row, normalizer)
    tl.store(logprobs + row, tl.load(x_row + index) - normalizer)


_SURVEY, _GREEDY, _DRAW = Kernel(_survey), Kernel(_greedy), Kernel(_draw)


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `Kernels.greedy`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    (rows, size), device = logits.shape, logits.device
    ids, logprobs = _results(device, rows, 1)
    if rows:
        arguments = *_surveyed(logits), ids, logprobs
        _GREEDY.launch((rows, 1, 1), arguments, {"size": size, **parts_of(size)}, warps=1)
    return ids, logprobs


def sample(logits: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `Kernels.sample`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    (rows, size), device = logits.shape, logits.device
    ids, logprobs, totals = _results(device, rows, 2)
    if rows:
        arguments = logits, at, *_surveyed(logits), ids, logprobs, totals
        constants = {"size": size, "row_stride": logits.stride(0), **parts_of(size), "BLOCK": BLOCK}
        _DRAW.launch((rows, 1, 1), arguments, constants, warps=row_warps(device))
    return ids, logprobs, totals


def _surveyed(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `_survey` finds."""
    (rows, size), parts = logits.shape, parts_of(logits.shape[1])["PARTS"]
    tops, masses = _numbers(logits.device, rows, parts), _numbers(logits.device, rows, parts)
    firsts = torch.empty((rows, parts), dtype=torch.int32, device=logits.device)
    constants = {"size": size, "row_stride": logits.stride(0), "BLOCK": BLOCK}
    _SURVEY.launch((rows, parts, 1), (logits, tops, firsts, masses), constants)
    return tops, firsts, masses


def _results(device: torch.device, rows: int, numbers: int) -> tuple[Tensor, ...]:
    """Of each row an index and so many numbers, side by side in memory, as they are copied to the host; each begins
    where kernels want it, see `launch.ALIGNMENT`."""
    begin, size = (-(-rows * 8 // ALIGNMENT) * ALIGNMENT // 8, -(-rows * 4 // ALIGNMENT) * ALIGNMENT // 4)
    memory = indices(begin + numbers * size // 2, device=device)
    return memory[:rows], *memory[begin:].view(torch.float32).view(numbers, size)[:, :rows]


def _numbers(device: torch.device, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


def parts_of(size: int) -> dict[str, int]:
    """Of a row of so many logits, as constants of kernels."""
    parts = triton.cdiv(size, BLOCK)
    return {"PARTS": parts, "PADDED": triton.next_power_of_2(parts)}
