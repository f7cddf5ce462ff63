"""Experts with weights of 4 and 8 bits for many tokens, in the tiles that `expert_tiles.sort_pairs` makes.

Letters: see `expert_tiles` of pairs and tiles, `rounded_expert_rows` of weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgi_core.triton.activation import gated
from tgi_core.triton.expert_tiles import NO_EXPERT
from tgi_core.triton.overlap import follow
from tgi_core.triton.rounded_expert_rows import gate_and_up
from tgi_core.triton.rounded_tiles import tile_outputs


@triton.jit(do_not_specialize=["pairs"])
def widen_tiles(
    x, sorted_pairs, experts, levels, first, second, scales, order, out, pairs, K: tl.constexpr,
    FEATURES: tl.constexpr, SIZE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, FORM: tl.constexpr, HALVES: tl.constexpr,
    STEPS: tl.constexpr, AT_ONCE: tl.constexpr, HAS_ORDER: tl.constexpr, KIND: tl.constexpr, UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [T, FEATURES], M = 2 E SIZE -> [S ROWS, SIZE] in the order of sorted pairs."""
    follow(OVERLAP)
    tile = tl.program_id(0)
    expert = tl.load(experts + tile)
    if expert == NO_EXPERT:
        return
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    pair = tl.load(sorted_pairs + row)
    filled = pair < pairs
    start = tl.program_id(1) * (OUTPUTS // 2)
    m, there = gate_and_up(start, SIZE, OUTPUTS)
    if HAS_ORDER:
        order += expert.to(tl.int64) * N
    y = tile_outputs(
        x, levels, first, second, scales, order, expert * 2 * SIZE + m, there,
        (pair // K).to(tl.int64), filled, 0, FEATURES, M, N, BLOCK, ROWS, OUTPUTS, FORM, HALVES, None, STEPS,
        AT_ONCE, HAS_ORDER, UPCAST,
    )  # fmt: skip
    dtype = x.dtype.element_ty
    parts = tl.reshape(y.to(dtype).to(tl.float32), (2, OUTPUTS // 2, ROWS))
    gate, up = tl.split(tl.permute(parts, (1, 2, 0)))
    m = start + tl.arange(0, OUTPUTS // 2)
    there = out + row[None, :] * SIZE + m[:, None]
    tl.store(there, gated(gate, up, dtype, KIND).to(dtype), mask=filled[None, :] & (m < SIZE)[:, None])


@triton.jit(do_not_specialize=["pairs"])
def narrow_tiles(
    wide, sorted_pairs, experts, levels, first, second, scales, order, out, pairs, FEATURES: tl.constexpr,
    SIZE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, FORM: tl.constexpr, HALVES: tl.constexpr, STEPS: tl.constexpr,
    AT_ONCE: tl.constexpr, HAS_ORDER: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """wide [S ROWS, SIZE], M = E FEATURES -> [S ROWS, FEATURES], in the order of sorted pairs."""
    follow(OVERLAP)
    tile = tl.program_id(0)
    expert = tl.load(experts + tile)
    if expert == NO_EXPERT:
        return
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    filled = tl.load(sorted_pairs + row) < pairs
    m = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    there = m < FEATURES
    if HAS_ORDER:
        order += expert.to(tl.int64) * N
    y = tile_outputs(
        wide, levels, first, second, scales, order, expert * FEATURES + m, there, row,
        filled, 0, SIZE, M, N, BLOCK, ROWS, OUTPUTS, FORM, HALVES, None, STEPS, AT_ONCE, HAS_ORDER, UPCAST,
    )  # fmt: skip
    at = out + row[None, :] * FEATURES + m[:, None]
    tl.store(at, y.to(wide.dtype.element_ty), mask=there[:, None] & filled[None, :])
