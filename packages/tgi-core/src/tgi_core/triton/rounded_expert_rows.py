"""Experts with weights of 4 and 8 bits for a few tokens: a program reads a few outputs of one expert.

Letters: T tokens, K experts of each, E experts; a pair is a token and one of its experts.  The weights of all experts
lie as one of M outputs and N places (see `rounded_tiles`), an expert's behind those of the one before it; only the
order of inputs is each expert's own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgi_core.triton.activation import gated
from tgi_core.triton.overlap import follow
from tgi_core.triton.rounded_tiles import row_outputs


@triton.jit
def gate_and_up(start, SIZE: tl.constexpr, OUTPUTS: tl.constexpr):
    """Outputs from `start` on of an expert's gate, which has SIZE, as many of its up, and whether there are such."""
    lane = tl.arange(0, OUTPUTS)
    m = start + lane % (OUTPUTS // 2)
    return m + lane // (OUTPUTS // 2) * SIZE, m < SIZE


@triton.jit
def widen_rows(
    x, chosen, levels, first, second, scales, order, out, K: tl.constexpr, FEATURES: tl.constexpr, SIZE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, FORM: tl.constexpr,
    HALVES: tl.constexpr, BLOCKS: tl.constexpr, AT_ONCE: tl.constexpr, HAS_ORDER: tl.constexpr, KIND: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [T, FEATURES], chosen [T, K], M = 2 E SIZE -> [T K, SIZE]; a program: some outputs of one pair's expert."""
    follow(OVERLAP)
    pair = tl.program_id(0).to(tl.int64)
    expert = tl.load(chosen + pair).to(tl.int32)
    start = tl.program_id(1) * (OUTPUTS // 2)
    m, there = gate_and_up(start, SIZE, OUTPUTS)
    if HAS_ORDER:
        order += expert.to(tl.int64) * N
    y = row_outputs(
        x + pair // K * FEATURES, levels, first, second, scales, order, expert * 2 * SIZE + m, there, M, N, BLOCK,
        OUTPUTS, FORM, HALVES, BLOCKS, AT_ONCE, HAS_ORDER,
    )  # fmt: skip
    dtype = x.dtype.element_ty
    gate, up = tl.split(tl.trans(tl.reshape(y.to(dtype).to(tl.float32), (2, OUTPUTS // 2))))
    m = start + tl.arange(0, OUTPUTS // 2)
    tl.store(out + pair * SIZE + m, gated(gate, up, dtype, KIND).to(dtype), mask=m < SIZE)


@triton.jit
def narrow_rows(
    wide, chosen, weights, levels, first, second, scales, order, out, K: tl.constexpr, FEATURES: tl.constexpr,
    SIZE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, OUTPUTS: tl.constexpr,
    FORM: tl.constexpr, HALVES: tl.constexpr, BLOCKS: tl.constexpr, AT_ONCE: tl.constexpr, HAS_ORDER: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """wide [T K, SIZE], chosen and weights [T, K], M = E FEATURES -> [T, FEATURES]; a program: some of one token's."""
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    there = m < FEATURES
    dtype = wide.dtype.element_ty
    mixed = tl.zeros([OUTPUTS], tl.float32)
    for each in range(K):
        pair = token * K + each
        expert = tl.load(chosen + pair).to(tl.int32)
        own = order
        if HAS_ORDER:
            own = order + expert.to(tl.int64) * N
        y = row_outputs(
            wide + pair * SIZE, levels, first, second, scales, own, expert * FEATURES + m, there, M, N, BLOCK, OUTPUTS,
            FORM, HALVES, BLOCKS, AT_ONCE, HAS_ORDER,
        )  # fmt: skip
        mixed += y.to(dtype).to(tl.float32) * tl.load(weights + pair)
    tl.store(out + token * FEATURES + m, mixed.to(dtype), mask=there)
