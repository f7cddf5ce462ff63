"""Attention that adds up a query's keys in the same order, whatever step it is in: prompt, chunk or decode.

Keys are divided into splits of the same size, from the first key of the sequence on.  Each is attended to by itself,
then splits are taken together one after the other: by the program that attended to them, or, where there are too few
programs, by another one behind those that had one split each.  Keys that a query does not see add exact zeros.

Kernels are compiled without contracting products and sums (`Kernel`), so that both ways round alike.  Letters as in
`prefill`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgi_core.triton.overlap import follow
from tgi_core.triton.prefill import attend_to, keys_of_tile, tile_of_queries
from tgi_core.triton.scores import LOWEST, merge

SPLIT = 256  #: keys


@triton.jit
def attend_in_order(
    q, keys, values, output, partial, bests, totals, tile_sequence, tile_start, query_starts, lens, key_starts, tables,
    info, slopes, bias, scale, soft_cap,
    q_token: tl.constexpr, k_token: tl.constexpr, v_token: tl.constexpr, columns: tl.constexpr, origin: tl.constexpr,
    window: tl.constexpr, H: tl.constexpr, HKV: tl.constexpr, G: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, S: tl.constexpr, SPLIT: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WIDTH_AT: tl.constexpr, PAGED: tl.constexpr, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program: one tile of queries, P heads, all splits; with S > 1 a single query and one of at most S splits."""
    follow(OVERLAP)
    sequence, start, length, context, kv_head, first_head, inside, head, before, positions, rows = tile_of_queries(
        tile_sequence, tile_start, query_starts, lens, G, P, M, CAUSAL
    )
    dims = tl.arange(0, DP)
    mask = inside[:, None] & (dims < D)[None, :]
    queries = tl.load(q + rows[:, None] * q_token + head[:, None] * D + dims[None, :], mask=mask, other=0.0)
    width, first_key = keys_of_tile(info, key_starts, sequence, WIDTH_AT, PAGED)
    last = context
    first = 0
    if CAUSAL:
        last = tl.minimum(context, before + start + M // P)
    if HAS_WINDOW:
        first = tl.maximum(before + start - window + 1, 0) // SPLIT
    end = tl.cdiv(last, SPLIT)
    if S > 1:
        first = tl.maximum(first, tl.program_id(2))
        end = tl.minimum(end, tl.program_id(2) + 1)
    best = tl.full([M], LOWEST, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, DP], tl.float32)
    for split in range(first, end):
        split_best = tl.full([M], LOWEST, tl.float32)
        split_total = tl.zeros([M], tl.float32)
        split_out = tl.zeros([M, DP], tl.float32)
        split_best, split_total, split_out = attend_to(
            queries, keys, values, tables, split_best, split_total, split_out, split * SPLIT,
            tl.minimum(split * SPLIT + SPLIT, last), last, sequence, width, head, positions, kv_head, k_token, v_token,
            first_key, scale, soft_cap, slopes, bias, columns, origin, first_head, before + start, window,
            D, DP, N, P, HKV, BLOCK_SIZE, PAGED, False, CAUSAL, HAS_WINDOW, True, HAS_SOFT_CAP, HAS_SLOPES, HAS_BIAS,
            UPCAST,
        )  # fmt: skip
        best, total, out = merge(best, total, out, split_best, split_total, split_out)
    if start < length:  # otherwise it is padding
        if S == 1:
            there = output + rows[:, None] * (H * D) + head[:, None] * D + dims[None, :]
            tl.store(there, (out / total[:, None]).to(output.dtype.element_ty), mask=mask)
        elif first < end:
            at = (tl.program_id(0) * H + head).to(tl.int64) * S + tl.program_id(2)
            tl.store(partial + at[:, None] * D + dims[None, :], out, mask=mask)
            tl.store(bests + at, best, mask=inside)
            tl.store(totals + at, total, mask=inside)


@triton.jit
def combine_in_order(
    partial, bests, totals, output, tile_sequence, tile_start, query_starts, lens,
    window: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, S: tl.constexpr, SPLIT: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Takes together the splits of one head of one query."""
    follow(OVERLAP)
    tile = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.load(tile_sequence + tile)
    token = tl.load(query_starts + sequence)
    length = tl.load(query_starts + sequence + 1) - token
    context = tl.load(lens + sequence)
    if tl.load(tile_start + tile) < length:
        dims = tl.arange(0, DP)
        first = 0
        if HAS_WINDOW:
            first = tl.maximum(context - window, 0) // SPLIT
        best = tl.full([1], LOWEST, tl.float32)
        total = tl.zeros([1], tl.float32)
        out = tl.zeros([1, DP], tl.float32)
        for split in range(first, tl.cdiv(context, SPLIT)):
            at = (tile * H + head).to(tl.int64) * S + split + tl.arange(0, 1)
            part = tl.load(partial + at[:, None] * D + dims[None, :], mask=(dims < D)[None, :], other=0.0)
            best, total, out = merge(best, total, out, tl.load(bests + at), tl.load(totals + at), part)
        there = output + (token.to(tl.int64) * H + head) * D + dims[None, :]
        tl.store(there, (out / total[:, None]).to(output.dtype.element_ty), mask=(dims < D)[None, :])
