"""Attention of any number of queries in each sequence.

Letters: H query heads, G of them for each of Hkv key heads, D head size, DP the next power of two.  The rows of a tile
are P heads of one group for M // P tokens, so that they share keys and values.  Keys lie in blocks of a cache (PAGED),
or beside the queries, as an encoder's do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgi_core.triton.arrivals import arrives_last
from tgi_core.triton.float8 import widened
from tgi_core.triton.overlap import follow
from tgi_core.triton.scores import (
    HIDDEN,
    LOWEST,
    accumulate,
    adjust,
    biases_of_tile,
    edges_of,
    key_slots,
    merge,
    product,
    slopes_of,
)


@triton.jit
def attend_to(
    q, keys, values, tables, best, total, out, begin, end, last, sequence, width, head, positions, kv_head, k_token,
    v_token, first_key, scale, soft_cap, slopes, bias, columns, origin, first_head, first_position, window,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, P: tl.constexpr, HKV: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    PAGED: tl.constexpr, COPIED: tl.constexpr, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr, MASKED: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys from `begin` to `end`, of which those from `last` on do not exist; unless MASKED, all queries see all."""
    dims = tl.arange(0, DP)
    slope = slopes_of(slopes, head, HAS_SLOPES)
    far_before, far_behind = edges_of(bias, head, columns, HAS_BIAS)
    for start in range(begin, end, N):
        n = start + tl.arange(0, N)
        seen = n < last
        if COPIED:
            row = (first_key + start).to(tl.int32)
            k = keys.load([row, kv_head, 0]).reshape(N, DP).trans()
            v = values.load([row, kv_head, 0]).reshape(N, DP)
            if MASKED:  # another sequence's may not be numbers
                v = tl.where(seen[:, None], v, 0.0)
        else:
            if PAGED:
                slot = key_slots(tables, sequence, width, n, seen, BLOCK_SIZE)
                k_row, v_row = slot * (HKV * D) + kv_head * D, slot * (HKV * D) + kv_head * D
            else:
                k_row, v_row = (first_key + n) * k_token + kv_head * D, (first_key + n) * v_token + kv_head * D
            if MASKED:
                k_mask = seen[None, :] & (dims < D)[:, None]
                v_mask = seen[:, None] & (dims < D)[None, :]
                k = tl.load(keys + k_row[None, :] + dims[:, None], mask=k_mask, other=0.0)
                v = tl.load(values + v_row[:, None] + dims[None, :], mask=v_mask, other=0.0)
            elif D == DP:
                k = tl.load(keys + k_row[None, :] + dims[:, None])
                v = tl.load(values + v_row[:, None] + dims[None, :])
            else:
                k = tl.load(keys + k_row[None, :] + dims[:, None], mask=(dims < D)[:, None], other=0.0)
                v = tl.load(values + v_row[:, None] + dims[None, :], mask=(dims < D)[None, :], other=0.0)
        k, v = widened(k, q.dtype, UPCAST), widened(v, q.dtype, UPCAST)
        biases = biases_of_tile(
            bias, far_before, far_behind, first_head, first_position, start, columns, origin, q.shape[0], N, P, HAS_BIAS
        )
        scores, unit = adjust(
            product(q, k, UPCAST), positions, n, scale, soft_cap, slope, biases, HAS_SOFT_CAP, HAS_SLOPES, HAS_BIAS
        )
        if MASKED:
            visible = seen[None, :]
            if CAUSAL:
                visible = visible & (n[None, :] <= positions[:, None])
            if HAS_WINDOW:
                visible = visible & (n[None, :] > positions[:, None] - window)
            scores = tl.where(visible, scores, HIDDEN)
        best, total, out = accumulate(scores, unit, v, best, total, out, UPCAST)
    return best, total, out


@triton.jit
def tile_of_queries(
    tile_sequence, tile_start, query_starts, lens, G: tl.constexpr, P: tl.constexpr, M: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    """What a program's tile is.

    Of its sequence: its number, the tile's first query, its queries in this step, its keys; the key head, and the first
    one of the query heads; for rows [M] whether there is one, and its head; the keys before this step; for rows [M] the
    position, and the place in q.
    """
    chunks: tl.constexpr = (G + P - 1) // P
    tile = tl.program_id(0)
    kv_head = tl.program_id(1) // chunks
    first_in_group = tl.program_id(1) % chunks * P
    in_group = first_in_group + tl.arange(0, M) % P
    sequence = tl.load(tile_sequence + tile)
    start = tl.load(tile_start + tile)
    first = tl.load(query_starts + sequence)
    length = tl.load(query_starts + sequence + 1) - first
    context = tl.load(lens + sequence)
    row = tl.arange(0, M)
    token = start + row // P
    inside = (token < length) & (row < M // P * P) & (in_group < G)
    head = tl.where(inside, kv_head * G + in_group, 0)
    before = context - length if CAUSAL else 0
    positions = before + token
    first_head = kv_head * G + first_in_group
    place = (first + token).to(tl.int64)
    return sequence, start, length, context, kv_head, first_head, inside, head, before, positions, place


@triton.jit
def keys_of_tile(info, key_starts, sequence, WIDTH_AT: tl.constexpr, PAGED: tl.constexpr):
    """Where a sequence's keys are: the width of block tables, or the first key beside the queries; the other is 0."""
    width = 0
    first_key = 0
    if PAGED:
        width = tl.load(info + WIDTH_AT)
    else:
        first_key = tl.load(key_starts + sequence).to(tl.int64)
    return width, first_key


@triton.jit
def _put_together(best, total, out, partial, bests, totals, arrived, part, parts, M: tl.constexpr, DP: tl.constexpr):
    """What a program found in its part of the keys -> in all parts, always in the same order, and whether it is there:
    the program that arrives last gets it."""
    tile = tl.program_id(0) - part  # that of the first part
    group = tile * tl.num_programs(1) + tl.program_id(1)
    size = tl.num_programs(1) * M
    row = group * M + tl.arange(0, M)
    there = row.to(tl.int64)[:, None] * DP + tl.arange(0, DP)[None, :]
    tl.store(partial + there + part.to(tl.int64) * size * DP, out)
    tl.store(bests + row + part * size, best)
    tl.store(totals + row + part * size, total)
    is_last = arrives_last(arrived + group, parts)
    if is_last:
        best = tl.full([M], LOWEST, tl.float32)
        total = tl.zeros([M], tl.float32)
        out = tl.zeros([M, DP], tl.float32)
        for other in range(parts):  # written by other multiprocessors
            their_best = tl.load(bests + row + other * size, cache_modifier=".cg")
            their_total = tl.load(totals + row + other * size, cache_modifier=".cg")
            theirs = tl.load(partial + there + tl.cast(other, tl.int64) * size * DP, cache_modifier=".cg")
            best, total, out = merge(best, total, out, their_best, their_total, theirs)
    return best, total, out, is_last


@triton.jit
def prefill(
    q, keys, values, output, partial, bests, totals, arrived, tile_part, tile_parts, tile_sequence, tile_start,
    query_starts, lens, key_starts, tables, info, slopes, bias, scale, soft_cap,
    q_token: tl.constexpr, k_token: tl.constexpr, v_token: tl.constexpr, columns: tl.constexpr, origin: tl.constexpr,
    window: tl.constexpr, H: tl.constexpr, HKV: tl.constexpr, G: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDTH_AT: tl.constexpr, PAGED: tl.constexpr,
    COPIED: tl.constexpr, CAUSAL: tl.constexpr, DIVIDED: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program: one tile of queries, P heads.  COPIED: keys and values come in tiles [N, 1, DP].  DIVIDED: a tile may
    be one of the parts of its keys, see `cut`."""
    follow(OVERLAP)
    sequence, start, length, context, kv_head, first_head, inside, head, before, positions, rows = tile_of_queries(
        tile_sequence, tile_start, query_starts, lens, G, P, M, CAUSAL
    )
    dims = tl.arange(0, DP)
    mask = inside[:, None] & (dims < D)[None, :]
    queries = tl.load(q + rows[:, None] * q_token + head[:, None] * D + dims[None, :], mask=mask, other=0.0)

    best = tl.full([M], LOWEST, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, DP], tl.float32)
    begin = 0
    last = context
    whole = context  # keys up to here are seen by every query
    if CAUSAL:
        last = tl.minimum(context, before + start + M // P)
        whole = before + start + 1
    if HAS_WINDOW:
        begin = tl.maximum(before + start - window + 1, 0) // N * N
        whole = begin
    part, parts = 0, 1
    if DIVIDED:
        part = tl.load(tile_part + tl.program_id(0))
        parts = tl.load(tile_parts + tl.program_id(0))
        size = tl.cdiv(tl.cdiv(last - begin, parts), N) * N
        begin += part * size
        last = tl.minimum(begin + size, last)
    middle = tl.maximum(tl.minimum(whole // N * N, last), begin)
    width, first_key = keys_of_tile(info, key_starts, sequence, WIDTH_AT, PAGED)
    best, total, out = attend_to(
        queries, keys, values, tables, best, total, out, begin, middle, last, sequence, width, head, positions, kv_head,
        k_token, v_token, first_key, scale, soft_cap, slopes, bias, columns, origin, first_head, before + start,
        window, D, DP, N, P, HKV, BLOCK_SIZE, PAGED, COPIED, CAUSAL, HAS_WINDOW, False, HAS_SOFT_CAP, HAS_SLOPES,
        HAS_BIAS, UPCAST,
    )  # fmt: skip
    best, total, out = attend_to(
        queries, keys, values, tables, best, total, out, middle, last, last, sequence, width, head, positions, kv_head,
        k_token, v_token, first_key, scale, soft_cap, slopes, bias, columns, origin, first_head, before + start,
        window, D, DP, N, P, HKV, BLOCK_SIZE, PAGED, COPIED, CAUSAL, HAS_WINDOW, True, HAS_SOFT_CAP, HAS_SLOPES,
        HAS_BIAS, UPCAST,
    )  # fmt: skip
    is_there = start < length  # otherwise it is padding
    if DIVIDED:
        if parts > 1:
            best, total, out, is_there = _put_together(
                best, total, out, partial, bests, totals, arrived, part, parts, M, DP
            )
    if is_there:
        out = out / total[:, None]
        there = output + rows[:, None] * (H * D) + head[:, None] * D + dims[None, :]
        tl.store(there, out.to(output.dtype.element_ty), mask=mask)
