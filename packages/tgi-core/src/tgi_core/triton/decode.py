"""Attention of one query in each sequence, the keys divided over programs ("split-KV", FlashDecoding).

Letters as in `prefill`.  A program: P heads of a group of one sequence, and one of S splits of its keys.  The new key
and value come from the projection; the program that has the last split puts them into the cache.  With HALF > 0 query
and new key are turned to their position here, see `rotary`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgi_core.triton.float8 import narrowed, widened
from tgi_core.triton.overlap import let_next_begin, wait_for_previous
from tgi_core.triton.rotary import rotation
from tgi_core.triton.scores import HIDDEN, LOWEST, accumulate, adjust, biases_of, key_slots, product, slopes_of


@triton.jit
def _split_size(visible, S: tl.constexpr, N: tl.constexpr):
    """Keys of each split, a multiple of N."""
    return tl.cdiv(tl.cdiv(visible, S), N) * N


@triton.jit
def _read(
    keys, values, tables, sequence, width, n, seen, dims, real, BLOCK_SIZE: tl.constexpr, token_size: tl.constexpr
):  # fmt: skip
    """The keys [DP, N] and values [N, DP] of tokens n [N]."""
    there = key_slots(tables, sequence, width, n, seen, BLOCK_SIZE) * token_size
    kt = tl.load(keys + there[None, :] + dims[:, None], mask=seen[None, :] & real[:, None], other=0.0)
    vs = tl.load(values + there[:, None] + dims[None, :], mask=seen[:, None] & real[None, :], other=0.0)
    return kt, vs


@triton.jit
def _attend(
    queries, kt, vs, n, seen, best, total, out, position, positions, scale, soft_cap, slopes, biases, window,
    HAS_WINDOW: tl.constexpr, HAS_SOFT_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Take keys and values of tokens n [N] into the running softmax, see `adjust` and `accumulate`."""
    kt, vs = widened(kt, queries.dtype, UPCAST), widened(vs, queries.dtype, UPCAST)
    scores, unit = adjust(
        product(queries, kt, UPCAST), positions, n, scale, soft_cap, slopes, biases, HAS_SOFT_CAP, HAS_SLOPES, HAS_BIAS
    )
    visible = seen[None, :]
    if HAS_WINDOW:
        visible = visible & (n[None, :] > position - window)
    return accumulate(tl.where(visible, scores, HIDDEN), unit, vs, best, total, out, UPCAST)


@triton.jit
def decode(
    q, k, v, cos, sin, keys, values, output, partial, sums, members, query_starts, lens, tables, info,
    slopes, bias, scale, soft_cap,
    q_token: tl.constexpr, k_token: tl.constexpr, v_token: tl.constexpr, columns: tl.constexpr, origin: tl.constexpr,
    window: tl.constexpr, H: tl.constexpr, HKV: tl.constexpr, G: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, HALF: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, S: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDTH_AT: tl.constexpr,
    HAS_NEW: tl.constexpr, SETTLED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFT_CAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Sequences without keys are padding: nothing is read or written for them.  SETTLED: see `KeysOf`; the first block
    of keys is then on its way before the queries are there."""
    let_next_begin(OVERLAP)
    chunks: tl.constexpr = (G + P - 1) // P
    member = tl.program_id(0)
    kv_head = tl.program_id(1) // chunks
    chunk = tl.program_id(1) % chunks
    split = tl.program_id(2)
    sequence = tl.load(members + member)
    context = tl.load(lens + sequence)
    token = tl.load(query_starts + sequence).to(tl.int64)
    width = tl.load(info + WIDTH_AT)
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(context - window, 0) // N * N
    size = _split_size(context - begin, S, N)
    begin += split * size
    end = tl.minimum(begin + size, context)
    has_keys = begin < end
    position = context - 1
    old = tl.minimum(end, position) if HAS_NEW else end
    row = tl.arange(0, M)
    in_group = chunk * P + row
    inside = (row < P) & (in_group < tl.where(has_keys, G, 0))
    head = tl.where(inside, kv_head * G + in_group, 0)
    positions = tl.zeros([M], tl.int32) + position
    dims = tl.arange(0, DP)
    real = dims < D
    token_size: tl.constexpr = HKV * D  # in the cache
    keys += kv_head * D
    values += kv_head * D
    slope = slopes_of(slopes, head, HAS_SLOPES)
    if HAS_NEW:
        own = position + tl.zeros([1], tl.int32)
        taken = tl.where(has_keys, end, -1) > own  # by the program that has the last split
        own_bias = biases_of(bias, head, positions, own, columns, origin, HAS_BIAS)
        k += token * k_token + kv_head * D
        v += token * v_token + kv_head * D
        slot = key_slots(tables, sequence, width, own, taken, BLOCK_SIZE) * token_size
    if SETTLED:
        n = begin + tl.arange(0, N)
        seen = n < old
        biases = biases_of(bias, head, positions, n, columns, origin, HAS_BIAS)
        kt, vs = _read(keys, values, tables, sequence, width, n, seen, dims, real, BLOCK_SIZE, token_size)
    wait_for_previous(OVERLAP)
    mask = inside[:, None] & real[None, :]
    q_heads = q + token * q_token + head[:, None] * D
    queries = tl.load(q_heads + dims[None, :], mask=mask, other=0.0)
    if HALF > 0:
        c, s, partner = rotation(cos, sin, token, dims, HALF)
        others = tl.load(q_heads + partner[None, :], mask=mask, other=0.0).to(tl.float32)
        queries = (queries.to(tl.float32) * c[None, :] + others * s[None, :]).to(queries.dtype)
    best = tl.full([M], LOWEST, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, DP], tl.float32)
    if HAS_NEW:  # read beside the query, the new key is the first one of the running softmax
        k_new = tl.load(k + dims, mask=real & taken, other=0.0)
        v_new = tl.load(v + dims, mask=real & taken, other=0.0)
        if HALF > 0:
            other = tl.load(k + partner, mask=real & taken, other=0.0).to(tl.float32)
            k_new = (k_new.to(tl.float32) * c + other * s).to(k_new.dtype)
        k_new = narrowed(k_new, keys.dtype.element_ty)
        v_new = narrowed(v_new, values.dtype.element_ty)
        scores, unit = adjust(
            tl.sum(queries.to(tl.float32) * k_new.to(tl.float32)[None, :], 1)[:, None], positions, own, scale, soft_cap,
            slope, own_bias, HAS_SOFT_CAP, HAS_SLOPES, HAS_BIAS,
        )  # fmt: skip
        best = tl.where(taken, tl.max(scores, 1) * unit, best)
        total += tl.where(taken, 1.0, 0.0)
        out += v_new.to(tl.float32)[None, :]
        if chunk == 0:
            tl.store(keys + slot + dims, k_new, mask=real & taken)
            tl.store(values + slot + dims, v_new, mask=real & taken)
    if SETTLED:
        best, total, out = _attend(
            queries, kt, vs, n, seen, best, total, out, position, positions, scale, soft_cap, slope, biases, window,
            HAS_WINDOW, HAS_SOFT_CAP, HAS_SLOPES, HAS_BIAS, UPCAST,
        )  # fmt: skip
        begin += N
    for start in range(begin, old, N):
        n = start + tl.arange(0, N)
        seen = n < old
        biases = biases_of(bias, head, positions, n, columns, origin, HAS_BIAS)
        kt, vs = _read(keys, values, tables, sequence, width, n, seen, dims, real, BLOCK_SIZE, token_size)
        best, total, out = _attend(
            queries, kt, vs, n, seen, best, total, out, position, positions, scale, soft_cap, slope, biases, window,
            HAS_WINDOW, HAS_SOFT_CAP, HAS_SLOPES, HAS_BIAS, UPCAST,
        )  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)  # without keys, where nothing is written
    out = out / total[:, None]
    if S == 1:
        there = output + token * (H * D) + head[:, None] * D + dims[None, :]
        tl.store(there, out.to(output.dtype.element_ty), mask=mask)
    else:
        at = (member * H + head).to(tl.int64) * S + split
        tl.store(partial + at[:, None] * D + dims[None, :], out, mask=mask)
        tl.store(sums + at, best + tl.log2(total), mask=inside)


@triton.jit
def combine(
    partial, sums, output, members, query_starts, lens,
    window: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, S: tl.constexpr,
    HAS_WINDOW: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Adds up the splits of one head of one sequence."""
    let_next_begin(OVERLAP)
    member = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.load(members + member)
    context = tl.load(lens + sequence)
    token = tl.load(query_starts + sequence).to(tl.int64)
    wait_for_previous(OVERLAP)
    if context > 0:
        begin = 0
        if HAS_WINDOW:
            begin = tl.maximum(context - window, 0) // N * N
        used = tl.cdiv(context - begin, _split_size(context - begin, S, N))
        split = tl.arange(0, S)
        there = split < used
        dims = tl.arange(0, DP)
        at = (member * H + head).to(tl.int64) * S + split
        logs = tl.load(sums + at, mask=there, other=LOWEST)
        weights = tl.exp2(logs - tl.max(logs, 0))
        mask = there[:, None] & (dims < D)[None, :]
        parts = tl.load(partial + at[:, None] * D + dims[None, :], mask=mask, other=0.0)
        out = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
        tl.store(output + (token * H + head) * D + dims, out.to(output.dtype.element_ty), mask=dims < D)
