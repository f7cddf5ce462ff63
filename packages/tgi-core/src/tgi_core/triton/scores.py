"""What prefill and decode share: scores of a tile of queries against a block of keys, and the running softmax."""

from __future__ import annotations

import triton
import triton.language as tl

HIDDEN = tl.constexpr(float("-inf"))  #: score of a key that is not seen, whatever it is multiplied with
LOWEST = tl.constexpr(-1.0e30)  #: what the best score begins with: finite, so that a row without any makes no NaN
MOST_HEADS = tl.constexpr(16)  #: of a group that share a program
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def slopes_of(slopes, heads, HAS_SLOPES: tl.constexpr):
    """heads [M] -> what `adjust` takes."""
    values = 0.0
    if HAS_SLOPES:
        values = tl.load(slopes + heads)
    return values


@triton.jit
def biases_of(bias, heads, positions, keys, columns, origin, HAS_BIAS: tl.constexpr):
    """Queries (heads [M], positions [M]), keys [N] -> what `adjust` takes."""
    values = 0.0
    if HAS_BIAS:
        column = tl.minimum(tl.maximum(keys[None, :] - positions[:, None] + origin, 0), columns - 1)
        values = tl.load(bias + heads[:, None] * columns + column)
    return values


@triton.jit
def edges_of(bias, heads, columns, HAS_BIAS: tl.constexpr):
    """heads [M] -> the biases of keys that are as far before a query, and as far behind it, as matters: [M] each"""
    before, behind = 0.0, 0.0
    if HAS_BIAS:
        before = tl.load(bias + heads * columns)
        behind = tl.load(bias + heads * columns + columns - 1)
    return before, behind


@triton.jit
def biases_of_tile(
    bias, before, behind, head, position, start, columns, origin,
    M: tl.constexpr, N: tl.constexpr, P: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Rows of P heads, from `head` on, of each query from `position` on, keys from `start` on -> what `adjust` takes.

    Keys and queries of a tile have few different distances, whose biases are read once, and found again in shared
    memory; unless all are far, see `edges_of`.
    """
    values = 0.0
    if HAS_BIAS:
        width: tl.constexpr = 2 * max(M, N)  # as many distances, or more
        heads: tl.constexpr = 1 if P == 1 else MOST_HEADS
        row = tl.arange(0, heads)
        first = start - position + origin
        column = tl.minimum(tl.maximum(first - M // P + tl.arange(0, width), 0), columns - 1)
        there = bias + (head + row)[:, None] * columns + column[None, :]
        near = tl.load(there, mask=(row < P)[:, None], other=0.0)
        values = tl.where(first < 0, before, behind)[:, None] + tl.zeros([M, N], tl.float32)
        if (first + N > 1) & (first - M // P < columns - 1):
            m, n = tl.arange(0, M), tl.arange(0, N)
            place = (m % P * width + M // P - m // P)[:, None] + n[None, :]
            values = tl.gather(tl.reshape(near, [heads * width]), tl.reshape(place, [M * N]), 0).reshape(M, N)
    return values


@triton.jit
def adjust(
    scores, positions, keys, scale, soft_cap, slopes, biases,
    HAS_SOFT_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Products [M, N] of queries (positions [M]) and keys [N] -> scores, and what they are to be multiplied with to be
    in base 2.  slopes [M] and biases [M, N]: see `slopes_of` and `biases_of`."""
    unit = scale * LOG2_E
    if HAS_SOFT_CAP or HAS_SLOPES or HAS_BIAS:
        unit = LOG2_E * 1.0
        scores *= scale
    if HAS_SOFT_CAP:  # cap * tanh(s / cap)
        scores = soft_cap * (2.0 * tl.sigmoid(2.0 * scores / soft_cap) - 1.0)
    if HAS_SLOPES:
        scores += slopes[:, None] * (keys[None, :] - positions[:, None]).to(tl.float32)
    if HAS_BIAS:
        scores += biases
    return scores, unit


@triton.jit
def product(a, b, UPCAST: tl.constexpr):
    """a @ b in float32.  UPCAST: multiply float32, for Triton's interpreter, which takes bfloat16 for integers."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def accumulate(scores, unit, values, best, total, out, UPCAST: tl.constexpr):
    """Take a block of keys into a running softmax (arXiv 2205.14135).

    scores [M, N], in base 2 once multiplied with `unit`, values [N, D]; best and total [M], out [M, D] so far -> the
    same.
    """
    higher = tl.maximum(best, tl.max(scores, 1) * unit)
    weights = tl.exp2(scores * unit - higher[:, None])
    shrink = tl.exp2(best - higher)
    total = total * shrink + tl.sum(weights, 1)
    out = out * shrink[:, None] + product(weights.to(values.dtype), values, UPCAST)
    return higher, total, out


@triton.jit
def merge(best, total, out, other_best, other_total, other_out):
    """A running softmax of other keys into one: best and total [...], out [..., D]."""
    higher = tl.maximum(best, other_best)
    shrink = tl.exp2(best - higher)
    weight = tl.exp2(other_best - higher)
    total = total * shrink + other_total * weight
    out = out * tl.expand_dims(shrink, -1) + other_out * tl.expand_dims(weight, -1)
    return higher, total, out


@triton.jit
def key_slots(tables, sequence, width, keys, seen, BLOCK_SIZE: tl.constexpr):
    """Where keys [N] of a sequence lie in the cache; those that are not seen lie anywhere in it."""
    block = tl.load(tables + sequence * width + keys // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
    return block * BLOCK_SIZE + keys % BLOCK_SIZE
