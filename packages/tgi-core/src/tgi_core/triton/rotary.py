"""Rotary position embedding, in place.  A program turns a few heads of one token, or finds the angles of one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.kernels.ops import Frequencies
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow, let_next_begin, wait_for_previous

HEADS = 8  #: of one program


@triton.jit
def turn(x, stride, cos, sin, token, head, there, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Heads, `stride` apart, of the token whose first one is at x, in place; returns the halves [heads, BLOCK]."""
    columns = tl.arange(0, BLOCK)
    inside = columns < HALF
    c = tl.load(cos + token * HALF + columns, mask=inside, other=0.0)[None, :]
    s = tl.load(sin + token * HALF + columns, mask=inside, other=0.0)[None, :]
    at = x + (head * stride)[:, None] + columns[None, :]
    mask = there[:, None] & inside[None, :]
    low = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
    turned_low = (low * c - high * s).to(x.dtype.element_ty)
    turned_high = (high * c + low * s).to(x.dtype.element_ty)
    tl.store(at, turned_low, mask=mask)
    tl.store(at + HALF, turned_high, mask=mask)
    return turned_low, turned_high


@triton.jit
def rotation(cos, sin, token, dims, HALF: tl.constexpr):
    """Factors of each dimension and of the one that it turns with, and where that is: one and zero where none is."""
    there = dims < 2 * HALF
    c = tl.load(cos + token * HALF + dims % HALF, mask=there, other=1.0)
    s = tl.load(sin + token * HALF + dims % HALF, mask=there, other=0.0)
    partner = tl.where(dims < HALF, dims + HALF, tl.where(there, dims - HALF, dims))
    return c, tl.where(dims < HALF, -s, s), partner


@triton.jit(do_not_specialize=["first"])
def _angles(
    positions, inverse, late, cos, sin, factor, first, HALF: tl.constexpr, BLOCK: tl.constexpr, HAS_LATE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    let_next_begin(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < HALF
    frequency = tl.load(inverse + column, mask=there, other=0.0)
    if HAS_LATE:
        late_frequency = tl.load(late + column, mask=there, other=0.0)
    wait_for_previous(OVERLAP)
    position = tl.load(positions + token)
    if HAS_LATE:
        frequency = tl.where(position < first, frequency, late_frequency)
    angle = position.to(tl.float32) * frequency
    tl.store(cos + token * HALF + column, tl.cos(angle) * factor, mask=there)
    tl.store(sin + token * HALF + column, tl.sin(angle) * factor, mask=there)


@triton.jit
def _rotate(
    q, k, cos, sin,
    q_token: tl.constexpr, q_head: tl.constexpr, k_token: tl.constexpr, k_head: tl.constexpr, q_heads: tl.constexpr,
    k_heads: tl.constexpr, HALF: tl.constexpr, Q_PROGRAMS: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    if program < Q_PROGRAMS:
        x, stride, heads, first = q + token * q_token, q_head, q_heads, program * HEADS
    else:
        x, stride, heads, first = k + token * k_token, k_head, k_heads, (program - Q_PROGRAMS) * HEADS
    head = first + tl.arange(0, HEADS)
    turn(x, stride, cos, sin, token, head, head < heads, HALF, BLOCK)


_ANGLES = Kernel(_angles, contracts=False)
_ROTATE = Kernel(_rotate)


def angles(positions: Tensor, frequencies: Frequencies) -> tuple[Tensor, Tensor]:
    """See `Kernels.angles`."""
    inverse, factor, late = frequencies
    half = len(inverse)
    cos, sin = (torch.empty((len(positions), half), dtype=torch.float32, device=positions.device) for _ in range(2))
    if len(positions):
        first, late_inverse = late or (0, None)
        constants = {"HALF": half, "BLOCK": triton.next_power_of_2(half), "HAS_LATE": late is not None}
        arguments = positions, inverse, late_inverse, cos, sin, float(factor), first
        _ANGLES.launch((len(positions), 1, 1), arguments, constants, warps=1)
    return cos, sin


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `Kernels.rotary`; q and k are overwritten."""
    if not len(q):
        return q, k
    half = cos.shape[-1]
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    q_programs = triton.cdiv(q.shape[1], HEADS)
    constants = {
        "q_token": q.stride(0),
        "q_head": q.stride(1),
        "k_token": k.stride(0),
        "k_head": k.stride(1),
        "q_heads": q.shape[1],
        "k_heads": k.shape[1],
        "HALF": half,
        "Q_PROGRAMS": q_programs,
        "HEADS": HEADS,
        "BLOCK": triton.next_power_of_2(half),
    }
    _ROTATE.launch((len(q), q_programs + triton.cdiv(k.shape[1], HEADS), 1), (q, k, cos, sin), constants, warps=1)
    return q, k
