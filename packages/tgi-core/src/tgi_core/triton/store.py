"""Puts keys and values into the cache; on their way queries and keys are turned to their positions."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tgi_core.attention.base import Rotation
from tgi_core.triton.float8 import narrowed
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow
from tgi_core.triton.rotary import HEADS, turn


@triton.jit
def _put(x, cache, head, there, dims, inside, D: tl.constexpr):
    """Heads of one token, side by side, into its place in a cache."""
    at = head[:, None] * D + dims[None, :]
    mask = there[:, None] & inside[None, :]
    tl.store(cache + at, narrowed(tl.load(x + at, mask=mask), cache.dtype.element_ty), mask=mask)


@triton.jit
def _store(
    q, k, v, cos, sin, keys, values, slots,
    q_token: tl.constexpr, k_token: tl.constexpr, v_token: tl.constexpr, H: tl.constexpr, HKV: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, Q_PROGRAMS: tl.constexpr,
    HEADS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program: a few heads of one token, of q, or of both k and v."""
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1) - Q_PROGRAMS
    if HALF > 0:
        if program < 0:
            head = (program + Q_PROGRAMS) * HEADS + tl.arange(0, HEADS)
            turn(q + token * q_token, D, cos, sin, token, head, head < H, HALF, BLOCK)
    if program >= 0:
        head = program * HEADS + tl.arange(0, HEADS)
        there = head < HKV
        dims = tl.arange(0, DP)
        slot = tl.load(slots + token).to(tl.int64)
        k_row, key = k + token * k_token, keys + slot * (HKV * D)
        rest = dims < D
        if HALF > 0:
            low, high = turn(k_row, D, cos, sin, token, head, there, HALF, BLOCK)
            if slot >= 0:
                columns = tl.arange(0, BLOCK)
                at = key + (head * D)[:, None] + columns[None, :]
                mask = there[:, None] & (columns < HALF)[None, :]
                tl.store(at, narrowed(low, keys.dtype.element_ty), mask=mask)
                tl.store(at + HALF, narrowed(high, keys.dtype.element_ty), mask=mask)
            rest = rest & (dims >= 2 * HALF)
        if slot >= 0:  # padding has none
            if 2 * HALF < D:
                _put(k_row, key, head, there, dims, rest, D)
            _put(v + token * v_token, values + slot * (HKV * D), head, there, dims, dims < D, D)


_STORE = Kernel(_store)


def store(
    q: Tensor, k: Tensor, v: Tensor, rotation: Rotation | None, keys: Tensor, values: Tensor, slots: Tensor
) -> None:
    """k and v [T, Hkv, D], heads side by side, into keys and values [blocks, block_size, Hkv, D] at slots [T] int32.

    With a rotation q [T, H, D] and k are overwritten by what they are turned to.  Padding has negative slots; a cache
    of float8 rounds (see `narrowed`).
    """
    heads, kv_heads, size = q.shape[1], k.shape[1], k.shape[2]
    cos, sin = rotation or (None, None)
    half = cos.shape[-1] if cos is not None else 0
    q_programs = triton.cdiv(heads, HEADS) if half else 0
    constants = {
        "q_token": q.stride(0),
        "k_token": k.stride(0),
        "v_token": v.stride(0),
        "H": heads,
        "HKV": kv_heads,
        "D": size,
        "DP": triton.next_power_of_2(size),
        "HALF": half,
        "BLOCK": triton.next_power_of_2(half) if half else 0,
        "Q_PROGRAMS": q_programs,
        "HEADS": HEADS,
    }
    grid = (len(k), q_programs + triton.cdiv(kv_heads, HEADS), 1)
    _STORE.launch(grid, (q, k, v, cos, sin, keys, values, slots), constants, warps=1)
