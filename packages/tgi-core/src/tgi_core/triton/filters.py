"""Filters: the smallest logit of a row that stays is looked for, then what is below is hidden.

Nothing is sorted.  A round tells for PIVOTS numbers how much is at or above each; the least that has enough and the
greatest that has not are where the next round looks.  In the first ROUNDS, which are kernels of their own, each program
looks at a part of a row; what is left then, if anything, one program does for each row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.chip import ROW_LANES, chip_of, row_warps
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow
from tgi_core.triton.parts import PART, amounts_of, numbers, parts_of, surveyed

ROUNDS = 4  #: that logits of 16 bits take; those that were computed in float32 take up to 6 for top-p
PIVOTS = 16
WIDTH = 4  #: neighbouring logits that a lane reads
READS = 4  #: of so many logits at a time, so that memory is kept busy; by programs that look at a whole row
MOST_ROUNDS = tl.constexpr(48)
STATE = tl.constexpr(4)  #: numbers that a round leaves for each row: low, high, depth, and whether it looks


@triton.jit
def _begin(
    tops, amounts, wanted, row, BY_MASS: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """A row's highest logit, how much is wanted at or above the smallest that stays, and whether to look for it."""
    top, _, amount = amounts_of(tops, amounts, row, tl.arange(0, PADDED), BY_MASS, PARTS)
    amount = tl.sum(amount)
    goal = tl.load(wanted + row).to(tl.float32)
    if BY_MASS:
        stays = (goal >= 1.0) | (amount != amount)
        goal *= amount
    else:
        stays = amount <= goal
    return top, goal, (top > float("-inf")) & (top < float("inf")) & (stays == 0)


@triton.jit
def _pivots(number, top, low, high, depth, PIVOTS: tl.constexpr):
    """Of a round; and how deep below the top the next one begins if nothing has enough yet."""
    pivot = tl.arange(0, PIVOTS).to(tl.float32)
    below = top - tl.where(number == 0, pivot, depth * tl.exp2(pivot))
    deeper = depth * tl.where(number == 0, 1.0, 1 << PIVOTS)
    between = low + (high - low) * ((pivot + 1) / (PIVOTS + 1))
    is_lost = low == float("-inf")
    return tl.where(is_lost, below, between), tl.where(is_lost, deeper, depth)


@triton.jit
def _look(
    x_row, pivots, top, low, high, begin, end, size: tl.constexpr, BY_MASS: tl.constexpr, PIVOTS: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, READS: tl.constexpr,
):  # fmt: skip
    """What is at or above each pivot; the least logit at or above `low`, and the greatest below `high`."""
    lane = tl.arange(0, LANES)[None, :, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]
    amounts = tl.zeros([PIVOTS, LANES], tl.float32)
    least = tl.full([1, LANES], float("inf"), tl.float32)
    most = tl.full([1, LANES], float("-inf"), tl.float32)
    for start in range(begin, end, READS * LANES * WIDTH):
        for read in tl.static_range(READS):
            columns = start + read * LANES * WIDTH + lane
            x = tl.load(x_row + columns, mask=columns < size, other=float("-inf"))
            each = tl.exp(x - top) if BY_MASS else tl.full([1, LANES, WIDTH], 1.0, tl.float32)
            amounts += tl.sum(tl.where(x >= pivots[:, None, None], each, 0.0), 2)
            least = tl.minimum(least, tl.min(tl.where(x >= low, x, float("inf")), 2))
            most = tl.maximum(most, tl.max(tl.where(x < high, x, float("-inf")), 2))
    return tl.sum(amounts, 1), tl.min(least), tl.max(most)


@triton.jit
def _narrowed(number, pivots, amounts, least, most, top, goal, low, high, BY_MASS: tl.constexpr):
    """What a round has found: at or above `low` there is enough, at or above `high` there is not; whether to go on."""
    enough = amounts >= goal
    is_exact = tl.min(tl.where(enough, amounts, float("inf"))) == goal
    low = tl.maximum(low, tl.max(tl.where(enough, pivots, float("-inf"))))
    high = tl.minimum(high, tl.min(tl.where(enough, float("inf"), pivots)))
    # equal logits, all that was between low and high, stay together
    goes_on = ((is_exact | (least >= most)) == 0) & (low < top) & (number + 1 < MOST_ROUNDS)
    if BY_MASS:
        goes_on &= (low > float("-inf")) | (number == 0)  # farther below the top there is no mass
    return low, high, goes_on


@triton.jit
def _after(
    number, states, chosen, sums, leasts, mosts, row, rows, top, goal, searching, BY_MASS: tl.constexpr,
    PARTS: tl.constexpr, PADDED: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Where a row is before round `number`, put together from what the one before left: low, high, depth, searching."""
    low, high = float("-inf"), float("inf")
    depth = 0.5 * PIVOTS
    if number > 0:
        before = (number - 1) % 2 * rows + row
        low = tl.load(states + before * STATE)
        high = tl.load(states + before * STATE + 1)
        depth = tl.load(states + before * STATE + 2)
        searching = tl.load(states + before * STATE + 3) > 0
        if searching:
            part, pivot = tl.arange(0, PADDED), tl.arange(0, PIVOTS)
            there = part < PARTS
            at = before * PARTS + part
            amounts = tl.load(sums + at[:, None] * PIVOTS + pivot[None, :], mask=there[:, None], other=0.0)
            least = tl.min(tl.load(leasts + at, mask=there, other=float("inf")))
            most = tl.max(tl.load(mosts + at, mask=there, other=float("-inf")))
            pivots = tl.load(chosen + before * PIVOTS + pivot)
            low, high, searching = _narrowed(
                number - 1, pivots, tl.sum(amounts, 0), least, most, top, goal, low, high, BY_MASS
            )
    return low, high, depth, searching


@triton.jit(do_not_specialize=["rows", "number"])
def _round(
    logits, wanted, tops, amounts, states, chosen, sums, leasts, mosts, rows, number, size: tl.constexpr,
    row_stride: tl.constexpr, BY_MASS: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr, PIVOTS: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, READS: tl.constexpr, PART: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A part of a row.  What rounds leave is [2, B, ...], as others still read what the one before has left."""
    follow(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    top, goal, searching = _begin(tops, amounts, wanted, row, BY_MASS, PARTS, PADDED)
    low, high, depth, searching = _after(
        number, states, chosen, sums, leasts, mosts, row, rows, top, goal, searching, BY_MASS, PARTS, PADDED, PIVOTS
    )
    pivots, depth = _pivots(number, top, low, high, depth, PIVOTS)
    here = number % 2 * rows + row
    if part == 0:
        tl.store(states + here * STATE, low)
        tl.store(states + here * STATE + 1, high)
        tl.store(states + here * STATE + 2, depth)
        tl.store(states + here * STATE + 3, tl.where(searching, 1.0, 0.0))
        tl.store(chosen + here * PIVOTS + tl.arange(0, PIVOTS), pivots)
    if searching:
        found, least, most = _look(
            logits + row * row_stride, pivots, top, low, high, part * PART, (part + 1) * PART, size, BY_MASS, PIVOTS,
            LANES, WIDTH, READS,
        )  # fmt: skip
        at = here * PARTS + part
        tl.store(sums + at * PIVOTS + tl.arange(0, PIVOTS), found)
        tl.store(leasts + at, least)
        tl.store(mosts + at, most)


@triton.jit(do_not_specialize=["rows", "number"])
def _finish(
    logits, wanted, tops, amounts, states, chosen, sums, leasts, mosts, lows, rows, number, size: tl.constexpr,
    row_stride: tl.constexpr, BY_MASS: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr, PIVOTS: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, READS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The rounds from `number` on, of a whole row: the smallest logit that stays; -inf where all do."""
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    top, goal, searching = _begin(tops, amounts, wanted, row, BY_MASS, PARTS, PADDED)
    low, high, depth, searching = _after(
        number, states, chosen, sums, leasts, mosts, row, rows, top, goal, searching, BY_MASS, PARTS, PADDED, PIVOTS
    )
    while searching:
        pivots, depth = _pivots(number, top, low, high, depth, PIVOTS)
        found, least, most = _look(
            logits + row * row_stride, pivots, top, low, high, 0, size, size, BY_MASS, PIVOTS, LANES, WIDTH, READS
        )
        low, high, searching = _narrowed(number, pivots, found, least, most, top, goal, low, high, BY_MASS)
        number += 1
    tl.store(lows + row, low)


@triton.jit
def _hide(logits, lows, size: tl.constexpr, row_stride: tl.constexpr, PART: tl.constexpr, OVERLAP: tl.constexpr):
    """What is below the smallest logit that stays, in a part of a row."""
    follow(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    low = tl.load(lows + row)
    if low > float("-inf"):
        columns = part * PART + tl.arange(0, PART)
        there = logits + row * row_stride + columns
        x = tl.load(there, mask=columns < size, other=float("-inf"))
        tl.store(there, float("-inf"), mask=(columns < size) & (x < low) & (x > float("-inf")))


_ROUND, _FINISH, _HIDE = Kernel(_round), Kernel(_finish), Kernel(_hide)


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """See `Kernels.top_k`; logits as likely as the k-th stay too."""
    return _filter(logits, k, by_mass=False)


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """See `Kernels.top_p`; logits as likely as the last one stay too."""
    return _filter(logits, p, by_mass=True)


def _filter(logits: Tensor, wanted: Tensor, *, by_mass: bool) -> Tensor:
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    (rows, size), device = logits.shape, logits.device
    if not rows:
        return logits
    row = {"size": size, "row_stride": logits.stride(0)}
    search = {**row, "BY_MASS": by_mass, **parts_of(size), "PIVOTS": PIVOTS}
    parts = search["PARTS"]
    tops, _, amounts = surveyed(logits, by_mass=by_mass)
    left = (STATE.value,), (PIVOTS,), (parts, PIVOTS), (parts,), (parts,)
    found = logits, wanted.contiguous(), tops, amounts, *(numbers(device, 2, rows, *shape) for shape in left)
    lanes, warps = lanes_of_parts(chip_of(device).lanes)
    for number in range(ROUNDS):
        _ROUND.launch((rows, parts, 1), (*found, rows, number), {**search, **lanes, "PART": PART}, warps)
    lows = numbers(device, rows)
    _FINISH.launch((rows, 1, 1), (*found, lows, rows, ROUNDS), {**search, **LANES_OF_ROWS}, row_warps(device))
    _HIDE.launch((rows, parts, 1), (logits, lows), {**row, "PART": PART})
    return logits


LANES_OF_ROWS = {"LANES": ROW_LANES, "WIDTH": WIDTH, "READS": READS}


def lanes_of_parts(lanes: int) -> tuple[dict[str, int], int]:
    """Constants, and warps: 4 where these have 32 lanes, 8 where they have 64, each of which has fewer logits then, as
    AMD's compiler keeps more of each in registers."""
    warps = lanes // 8
    reads = PART // (warps * lanes * WIDTH)
    return {"LANES": warps * lanes, "WIDTH": WIDTH, "READS": reads}, warps
