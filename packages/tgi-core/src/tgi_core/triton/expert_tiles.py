"""Experts for many tokens: those of an expert are brought together and multiplied in tiles.

Letters: T tokens, K experts of each, E experts, N features, M inner ones; a pair is a token and one of its experts,
P = T K.  Pairs are sorted by expert into S tiles of ROWS, some of whose rows no pair fills: at most as many tiles as
there can be for P, so that nothing depends on what was chosen.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgi_core.triton.activation import gated
from tgi_core.triton.overlap import follow
from tgi_core.triton.scores import product

NO_EXPERT = tl.constexpr(-1)  #: of a tile without pairs


@triton.jit(do_not_specialize=["pairs"])
def sort_pairs(
    chosen, sorted_pairs, places, experts, pairs, E: tl.constexpr, BINS: tl.constexpr, TILES: tl.constexpr,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """chosen [T, K] -> pairs in order [S ROWS], P where there is none; the place of each pair there [P]; the expert of
    each tile [S], S <= TILES.

    A program takes the pairs of one expert, and counts all, which are in at most BLOCKS.  BINS: more than E.
    """
    follow(OVERLAP)
    expert = tl.program_id(0)
    bins = tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int32)
    for block in range(BLOCKS):
        pair = block * BLOCK + tl.arange(0, BLOCK)
        counts += tl.histogram(tl.load(chosen + pair, mask=pair < pairs, other=E).to(tl.int32), BINS)
    tiles = tl.where(bins < E, (counts + ROWS - 1) // ROWS, 0)
    first = tl.sum(tl.where(bins < expert, tiles, 0))
    own = tl.sum(tl.where(bins == expert, tiles, 0))
    tile = tl.arange(0, TILES)
    tl.store(experts + tile, expert, mask=(tile >= first) & (tile < first + own))
    if expert == E - 1:
        tl.store(experts + tile, NO_EXPERT, mask=tile >= first + own)
    seen = first * ROWS
    for block in range(BLOCKS):
        pair = block * BLOCK + tl.arange(0, BLOCK)
        mine = (tl.load(chosen + pair, mask=pair < pairs, other=E) == expert).to(tl.int32)
        place = seen + tl.cumsum(mine, 0) - 1
        tl.store(sorted_pairs + place, pair, mask=mine == 1)
        tl.store(places + pair, place, mask=mine == 1)
        seen += tl.sum(mine)
    place = seen + tl.arange(0, ROWS)
    tl.store(sorted_pairs + place, pairs, mask=place < (first + own) * ROWS)


@triton.jit(do_not_specialize=["pairs"])
def bring_together(
    x, sorted_pairs, experts, out, pairs, K: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [T, N] -> [S ROWS, N] in the order of sorted pairs."""
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    if tl.load(experts + row // ROWS) == NO_EXPERT:
        return
    pair = tl.load(sorted_pairs + row)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seen = n < tl.where(pair < pairs, N, 0)
    tl.store(out + row * N + n, tl.load(x + (pair // K).to(tl.int64) * N + n, mask=seen), mask=seen)


@triton.jit(do_not_specialize=["pairs"])
def widen_tiles(
    x, sorted_pairs, experts, gate_up, out, pairs, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [T, N], gate_up [E, 2 M, N] -> [S ROWS, M] in the order of sorted pairs."""
    follow(OVERLAP)
    tile = tl.program_id(0).to(tl.int64)
    expert = tl.load(experts + tile).to(tl.int64)
    if expert == NO_EXPERT:
        return
    row = tile * ROWS + tl.arange(0, ROWS)
    pair = tl.load(sorted_pairs + row)
    filled = pair < pairs
    m = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = m < M
    n = tl.arange(0, INPUTS)
    a_there = x + (pair // K).to(tl.int64)[:, None] * N + n[None, :]
    gate_there = gate_up + expert * 2 * M * N + m.to(tl.int64)[None, :] * N + n[:, None]
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, N, INPUTS):
        left = n < N - start
        a = tl.load(a_there + start, mask=filled[:, None] & left[None, :], other=0.0)
        visible = left[:, None] & inside[None, :]
        gate += product(a, tl.load(gate_there + start, mask=visible, other=0.0), UPCAST)
        up += product(a, tl.load(gate_there + M * N + start, mask=visible, other=0.0), UPCAST)
    dtype = x.dtype.element_ty
    wide = gated(gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32), dtype, KIND)
    tl.store(out + row[:, None] * M + m[None, :], wide.to(dtype), mask=filled[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["pairs"])
def narrow_tiles(
    wide, sorted_pairs, experts, down, out, pairs, M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, INPUTS: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """wide [S ROWS, M], down [E, N, M] -> [S ROWS, N], in the order of sorted pairs."""
    follow(OVERLAP)
    tile = tl.program_id(0).to(tl.int64)
    expert = tl.load(experts + tile).to(tl.int64)
    if expert == NO_EXPERT:
        return
    row = tile * ROWS + tl.arange(0, ROWS)
    filled = tl.load(sorted_pairs + row) < pairs
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = n < N
    m = tl.arange(0, INPUTS)
    a_there = wide + row[:, None] * M + m[None, :]
    down_there = down + expert * N * M + n.to(tl.int64)[None, :] * M + m[:, None]
    y = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, M, INPUTS):
        left = m < M - start
        a = tl.load(a_there + start, mask=filled[:, None] & left[None, :], other=0.0)
        y += product(a, tl.load(down_there + start, mask=left[:, None] & inside[None, :], other=0.0), UPCAST)
    tl.store(out + row[:, None] * N + n[None, :], y.to(wide.dtype.element_ty), mask=filled[:, None] & inside[None, :])


@triton.jit
def mix(y, places, weights, out, K: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """y [S ROWS, N], places of pairs there [T K], weights [T, K] -> [T, N], the weighted sum."""
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mixed = tl.zeros([BLOCK], tl.float32)
    for each in range(K):
        pair = token * K + each
        place = tl.load(places + pair).to(tl.int64)
        part = tl.load(y + place * N + n, mask=n < N, other=0.0).to(tl.float32)
        mixed += part * tl.load(weights + pair)
    tl.store(out + token * N + n, mixed.to(out.dtype.element_ty), mask=n < N)
