"""Experts for a few tokens: a program reads a few rows of one expert's weight, as fast as memory gives them.

Letters: T tokens, K experts of each, E experts, N features, M inner ones; a pair is a token and one of its experts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgi_core.triton.linear import columns_of, gated_rows, outputs_of, rows_of, rows_product
from tgi_core.triton.overlap import follow


@triton.jit
def widen_rows(
    x, chosen, gate_up, out, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [T, N], chosen [T, K], gate_up [E, 2 M, N] -> [T K, M]; a program: some rows of one pair's expert."""
    follow(OVERLAP)
    pair = tl.program_id(0).to(tl.int64)
    row, there = rows_of(tl.program_id(1), M, ROWS, KIND)
    dtype = x.dtype.element_ty
    weight = gate_up + tl.load(chosen + pair) * 2 * M * N
    first = columns_of(weight, row, there, 0, N, COLUMNS)
    y = gated_rows(rows_product(x + pair // K * N, weight, first, row, there, N, COLUMNS), dtype, ROWS, KIND)
    m, there = outputs_of(tl.program_id(1), M, ROWS)
    tl.store(out + pair * M + m, y.to(dtype), mask=there)


@triton.jit
def narrow_rows(
    wide, chosen, weights, down, out, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """wide [T K, M], chosen and weights [T, K], down [E, N, M] -> [T, N]; a program: some features of one token."""
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = n < N
    dtype = wide.dtype.element_ty
    mixed = tl.zeros([ROWS], tl.float32)
    for each in range(K):
        pair = token * K + each
        weight = down + tl.load(chosen + pair) * N * M
        first = columns_of(weight, n, there, 0, M, COLUMNS)
        y = rows_product(wide + pair * M, weight, first, n, there, M, COLUMNS)
        mixed += y.to(dtype).to(tl.float32) * tl.load(weights + pair)
    tl.store(out + token * N + n, mixed.to(dtype), mask=there)
