"""Filters: a program finds the smallest logit of one row that stays, then hides what is below.

Nothing is sorted.  A round reads the row once and tells for PIVOTS numbers how much is at or above each; the least that
has enough and the greatest that has not are where the next round looks.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.chip import row_warps
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow

CONSTANTS = {
    "LANES": 512,  # of a program, each with WIDTH neighbouring logits
    "WIDTH": 4,
    "READS": 4,  # of so many logits at a time, so that memory is kept busy
    "PIVOTS": 16,
    "MOST_ROUNDS": 48,  # ordinary logits take 3 or 4, and up to twice as many where they were computed in float32
}


@triton.jit
def _survey(
    x_row, size: tl.constexpr, BY_MASS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, READS: tl.constexpr
):  # fmt: skip
    """The highest logit, and the mass of all as a share of its own, or how many are finite."""
    lane = tl.arange(0, LANES)[None, :, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]
    highest = tl.full([1, LANES], float("-inf"), tl.float32)
    amount = tl.zeros([1, LANES], tl.float32)
    for start in range(0, size, READS * LANES * WIDTH):
        for read in tl.static_range(READS):
            columns = start + read * LANES * WIDTH + lane
            x = tl.load(x_row + columns, mask=columns < size, other=float("-inf"))
            higher = tl.maximum(highest, tl.max(tl.where(x == x, x, float("-inf")), 2))
            if BY_MASS:
                shift = tl.where(higher == float("-inf"), 0.0, higher)
                amount = amount * tl.exp(highest - shift) + tl.sum(tl.exp(x - shift[:, :, None]), 2)
            else:
                amount += tl.sum(tl.where(x > float("-inf"), 1.0, 0.0), 2)
            highest = higher
    top = tl.max(tl.max(highest, 1), 0)
    if BY_MASS:
        amount *= tl.exp(highest - top)
    return top, tl.sum(amount)


@triton.jit
def _round(
    x_row, pivots, top, low, high, size: tl.constexpr, BY_MASS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
    READS: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """What is at or above each pivot; the least logit at or above `low`, and the greatest below `high`."""
    lane = tl.arange(0, LANES)[None, :, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]
    amounts = tl.zeros([PIVOTS, LANES], tl.float32)
    least = tl.full([1, LANES], float("inf"), tl.float32)
    most = tl.full([1, LANES], float("-inf"), tl.float32)
    for start in range(0, size, READS * LANES * WIDTH):
        for read in tl.static_range(READS):
            columns = start + read * LANES * WIDTH + lane
            x = tl.load(x_row + columns, mask=columns < size, other=float("-inf"))
            each = tl.exp(x - top) if BY_MASS else tl.full([1, LANES, WIDTH], 1.0, tl.float32)
            amounts += tl.sum(tl.where(x >= pivots[:, None, None], each, 0.0), 2)
            least = tl.minimum(least, tl.min(tl.where(x >= low, x, float("inf")), 2))
            most = tl.maximum(most, tl.max(tl.where(x < high, x, float("-inf")), 2))
    return tl.sum(amounts, 1), tl.min(least), tl.max(most)


@triton.jit
def _filter(
    logits, wanted, size: tl.constexpr, row_stride: tl.constexpr, BY_MASS: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, READS: tl.constexpr, PIVOTS: tl.constexpr, MOST_ROUNDS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """BY_MASS: `wanted` is a probability, else a number of logits."""
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    x_row = logits + row * row_stride
    top, amount = _survey(x_row, size, BY_MASS, LANES, WIDTH, READS)
    goal = tl.load(wanted + row).to(tl.float32)
    if BY_MASS:
        stays = (goal >= 1.0) | (amount != amount)
        goal *= amount
    else:
        stays = amount <= goal
    searching = (top > float("-inf")) & (top < float("inf")) & (stays == 0)
    low = float("-inf")  # at or above it there is enough
    high = float("inf")  # at or above it there is not
    depth = 0.5 * PIVOTS  # below the top, where the second round begins if the first one finds nothing
    rounds = 0
    pivot = tl.arange(0, PIVOTS).to(tl.float32)
    while searching:
        if low == float("-inf"):
            pivots = top - tl.where(rounds == 0, pivot, depth * tl.exp2(pivot))
            depth *= tl.where(rounds == 0, 1.0, 1 << PIVOTS)
        else:
            pivots = low + (high - low) * ((pivot + 1) / (PIVOTS + 1))
        amounts, least, most = _round(x_row, pivots, top, low, high, size, BY_MASS, LANES, WIDTH, READS, PIVOTS)
        enough = amounts >= goal
        is_exact = tl.min(tl.where(enough, amounts, float("inf"))) == goal
        low = tl.maximum(low, tl.max(tl.where(enough, pivots, float("-inf"))))
        high = tl.minimum(high, tl.min(tl.where(enough, float("inf"), pivots)))
        rounds += 1
        # equal logits, all that was between low and high, stay together
        searching = ((is_exact | (least >= most)) == 0) & (low < top) & (rounds < MOST_ROUNDS)
        if BY_MASS:
            searching &= (low > float("-inf")) | (rounds == 1)  # farther below the top there is no mass
    if low > float("-inf"):
        for start in range(0, size, LANES * WIDTH):
            columns = start + tl.arange(0, LANES * WIDTH)
            x = tl.load(x_row + columns, mask=columns < size, other=float("-inf"))
            tl.store(x_row + columns, float("-inf"), mask=(columns < size) & (x < low) & (x > float("-inf")))


_FILTER = Kernel(_filter)


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """See `Kernels.top_k`; logits as likely as the k-th stay too."""
    return _launch(logits, k, by_mass=False)


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """See `Kernels.top_p`; logits as likely as the last one stay too."""
    return _launch(logits, p, by_mass=True)


def _launch(logits: Tensor, wanted: Tensor, *, by_mass: bool) -> Tensor:
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    if len(logits):
        constants = {"size": logits.shape[1], "row_stride": logits.stride(0), "BY_MASS": by_mass, **CONSTANTS}
        _FILTER.launch((len(logits), 1, 1), (logits, wanted.contiguous()), constants, row_warps(logits.device))
    return logits
