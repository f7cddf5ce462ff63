"""Products with weights of 4 and 8 bits, which become numbers of x's dtype on their way from memory.

A run is BLOCK neighbouring inputs, which share what their levels mean:

    int8    level
    int4    level * step + offset - 128, see `kernels.reference.linear.Int4Weight`
    affine  (level - zero) * scale, see `AffineLinearKernel`

Levels lie run by run [R, M, BLOCK]; those of 4 bits two runs together [R / 2, M, BLOCK], the first in the low bits.
What they mean lies beside them, two tensors [R, M]; int8 and int4 are multiplied by a scale of each output at the end.
Where inputs have another order, it names the one at each of N places; -1 = none, where runs are longer than groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgi_core.triton.overlap import follow
from tgi_core.triton.scores import product

TWO_TO_23 = tl.constexpr(8388608.0)  #: whose last bit is worth 1 in float32
TWO_TO_23_BITS = tl.constexpr(0x4B000000)


@triton.jit
def inputs_at(order, n, N: tl.constexpr, HAS_ORDER: tl.constexpr):
    """Places n -> the inputs there, and whether there are any."""
    column, there = n, n < N
    if HAS_ORDER:
        column = tl.load(order + n, mask=there, other=-1)
        there = column >= 0
    return column, there


@triton.jit
def meaning(first, second, at, there, FORM: tl.constexpr):
    """Of runs' levels: two tensors like `at`, of anything where FORM needs none."""
    one, other = at, at
    if FORM != "int8":
        one = tl.load(first + at, mask=there, other=0).to(tl.float32)
        other = tl.load(second + at, mask=there, other=0).to(tl.float32)
    return one, other


@triton.jit
def floats(levels, FORM: tl.constexpr):
    """levels -> float32.  Bytes become the last bits of a number, as converting takes a GPU twice as long."""
    if FORM == "int8":
        return levels.to(tl.float32)
    return (levels.to(tl.int32) | TWO_TO_23_BITS).to(tl.float32, bitcast=True) - TWO_TO_23


@triton.jit
def numbers(levels, one, other, FORM: tl.constexpr):
    """levels and what they mean -> float32, still to be multiplied by a scale."""
    x = floats(levels, FORM)
    if FORM == "int4":
        x = x * one + (other - 128.0)
    elif FORM == "affine":
        x -= one
    return x


@triton.jit
def row_runs(
    levels, x, run, order, first, second, m, there, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
    FORM: tl.constexpr, HAS_ORDER: tl.constexpr,
):  # fmt: skip
    """levels [M', R', BLOCK] of some runs [R'] -> each multiplied with its number of x [N]: [M', R', BLOCK]"""
    column, inside = inputs_at(order, run[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :], N, HAS_ORDER)
    a = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    at = run[None, :] * M + m[:, None]
    seen = there[:, None] & (run * BLOCK < N)[None, :]
    one, other = meaning(first, second, at, seen, FORM)
    if FORM == "affine":  # as one product and one sum
        y = floats(levels, FORM) * other[:, :, None] - (one * other)[:, :, None]
    else:
        y = numbers(levels, one[:, :, None], other[:, :, None], FORM)
    return y * a[None, :, :]


@triton.jit
def row_outputs(
    x, levels, first, second, scales, order, m, there, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
    OUTPUTS: tl.constexpr, FORM: tl.constexpr, HALVES: tl.constexpr, BLOCKS: tl.constexpr, AT_ONCE: tl.constexpr,
    HAS_ORDER: tl.constexpr,
):  # fmt: skip
    """x [N] -> the outputs m [OUTPUTS] of M that are there, in float32; AT_ONCE of the BLOCKS of levels at a time.

    HALVES: two runs are in the same bytes.
    """
    inside = m.to(tl.int64)[:, None, None] * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    total = tl.zeros([OUTPUTS, AT_ONCE, BLOCK], tl.float32)
    for start in range(0, BLOCKS, AT_ONCE):
        block = start + tl.arange(0, AT_ONCE)
        seen = there[:, None, None] & (block < BLOCKS)[None, :, None]
        here = levels + block.to(tl.int64)[None, :, None] * (M * BLOCK) + inside
        found = tl.load(here, mask=seen, other=0, eviction_policy="evict_first")
        if HALVES:
            total += row_runs(
                found & 15, x, 2 * block, order, first, second, m, there, M, N, BLOCK, FORM, HAS_ORDER
            )  # fmt: skip
            total += row_runs(
                found >> 4, x, 2 * block + 1, order, first, second, m, there, M, N, BLOCK, FORM, HAS_ORDER
            )  # fmt: skip
        else:
            total += row_runs(found, x, block, order, first, second, m, there, M, N, BLOCK, FORM, HAS_ORDER)
    y = tl.sum(tl.sum(total, 2), 1)
    if FORM != "affine":
        y *= tl.load(scales + m, mask=there, other=0.0)
    return y


@triton.jit
def multiply_row(
    x, levels, first, second, scales, order, bias, out, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
    OUTPUTS: tl.constexpr, FORM: tl.constexpr, HALVES: tl.constexpr, BLOCKS: tl.constexpr, AT_ONCE: tl.constexpr,
    HAS_ORDER: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [N] -> [M]; a program: some outputs."""
    follow(OVERLAP)
    m = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    there = m < M
    y = row_outputs(
        x, levels, first, second, scales, order, m, there, M, N, BLOCK, OUTPUTS, FORM, HALVES, BLOCKS, AT_ONCE,
        HAS_ORDER,
    )  # fmt: skip
    if HAS_BIAS:
        y += tl.load(bias + m, mask=there, other=0.0).to(tl.float32)
    tl.store(out + m, y.to(out.dtype.element_ty), mask=there)


@triton.jit
def run_product(
    levels, x, run, order, first, second, m, there, row, given, x_row: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    BLOCK: tl.constexpr, FORM: tl.constexpr, HAS_ORDER: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """levels [M', BLOCK] of a run -> their product with x [ROWS, N]: [M', ROWS]"""
    column, inside = inputs_at(order, run * BLOCK + tl.arange(0, BLOCK), N, HAS_ORDER)
    a = tl.load(x + row[None, :] * x_row + column[:, None], mask=inside[:, None] & given[None, :], other=0.0)
    one, other = meaning(first, second, run * M + m, there, FORM)
    w = numbers(levels, one[:, None], other[:, None], FORM)
    y = product(w if UPCAST else w.to(a.dtype), a, UPCAST)
    return y * other[:, None] if FORM == "affine" else y


@triton.jit
def tile_outputs(
    x, levels, first, second, scales, order, m, there, row, given, first_block, x_row: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, FORM: tl.constexpr,
    HALVES: tl.constexpr, BLOCKS: tl.constexpr, STEPS: tl.constexpr, AT_ONCE: tl.constexpr, HAS_ORDER: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS] of x that are given, outputs m [OUTPUTS] of M that are there -> [OUTPUTS, ROWS] in float32.

    STEPS, each of AT_ONCE blocks of levels, from first_block on.  BLOCKS: where they end, None = not before the steps.
    HALVES: two runs are in the same bytes.
    """
    block = levels + m.to(tl.int64)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    block += tl.cast(first_block, tl.int64) * M * BLOCK
    y = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for step in range(STEPS):
        for part in tl.static_range(AT_ONCE):
            at = first_block + step * AT_ONCE + part
            seen = there
            if BLOCKS is not None:
                seen = there & (m < tl.where(at < BLOCKS, M, 0))
            found = tl.load(block + part * M * BLOCK, mask=seen[:, None], other=0, eviction_policy="evict_first")
            if HALVES:
                y += run_product(
                    found & 15, x, 2 * at, order, first, second, m, seen, row, given,
                    x_row, M, N, BLOCK, FORM, HAS_ORDER, UPCAST,
                )  # fmt: skip
                y += run_product(
                    found >> 4, x, 2 * at + 1, order, first, second, m, seen, row, given,
                    x_row, M, N, BLOCK, FORM, HAS_ORDER, UPCAST,
                )  # fmt: skip
            else:
                y += run_product(
                    found, x, at, order, first, second, m, seen, row, given,
                    x_row, M, N, BLOCK, FORM, HAS_ORDER, UPCAST,
                )  # fmt: skip
        block += AT_ONCE * M * BLOCK
    if FORM != "affine":
        y *= tl.load(scales + m, mask=there, other=0.0)[:, None]
    return y


@triton.jit(do_not_specialize=["rows"])
def multiply(
    x, levels, first, second, scales, order, bias, out, rows, x_row: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, FORM: tl.constexpr, HALVES: tl.constexpr,
    BLOCKS: tl.constexpr, STEPS: tl.constexpr, AT_ONCE: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_BIAS: tl.constexpr,
    UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [T, N] -> [T, M], or [S, T, M] of which the sum is it; a program: some outputs and rows, and a split of inputs.

    STEPS: of a split.
    """
    follow(OVERLAP)
    start, split = tl.program_id(0) * ROWS, tl.program_id(2)
    x += start.to(tl.int64) * x_row
    out += (split * rows + start).to(tl.int64) * M
    row = tl.arange(0, ROWS)
    m = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    there, given = m < M, row < rows - start
    y = tile_outputs(
        x, levels, first, second, scales, order, m, there, row, given, split * STEPS * AT_ONCE, x_row, M, N, BLOCK,
        ROWS, OUTPUTS, FORM, HALVES, BLOCKS, STEPS, AT_ONCE, HAS_ORDER, UPCAST,
    )  # fmt: skip
    if HAS_BIAS:
        y += tl.load(bias + m, mask=m < tl.where(split == 0, M, 0), other=0.0).to(tl.float32)[:, None]
    tl.store(out + row[None, :] * M + m[:, None], y.to(out.dtype.element_ty), mask=there[:, None] & given[None, :])


@triton.jit(do_not_specialize=["size"])
def add_splits(parts, out, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """parts [SPLITS, size] float32 -> their sum [size]"""
    follow(OVERLAP)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * size + at, mask=there, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there)


@triton.jit
def expand(
    levels, first, second, scales, order, out, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr, FORM: tl.constexpr, HALVES: tl.constexpr, HAS_ORDER: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """The weight itself [M, COLUMNS]; a program: some outputs of a run."""
    follow(OVERLAP)
    run = tl.program_id(0)
    m = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    there, wide = m < M, m.to(tl.int64)
    at = (run // 2 if HALVES else run).to(tl.int64) * M * BLOCK
    found = tl.load(levels + at + wide[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :], mask=there[:, None], other=0)
    if HALVES:
        found = (found >> (run % 2 * 4)) & 15
    one, other = meaning(first, second, run * M + m, there, FORM)
    scale = other if FORM == "affine" else tl.load(scales + m, mask=there, other=0.0)
    w = numbers(found, one[:, None], other[:, None], FORM) * scale[:, None]
    column, inside = inputs_at(order, run * BLOCK + tl.arange(0, BLOCK), N, HAS_ORDER)
    w_there = out + wide[:, None] * COLUMNS + column[None, :]
    tl.store(w_there, w.to(out.dtype.element_ty), mask=there[:, None] & inside[None, :])
