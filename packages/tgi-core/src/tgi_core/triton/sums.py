"""Sums over GPUs that write into each other's memory (one-shot all-reduce).

Every rank sends its numbers to all others, four bytes at a time, with the number of the sum that they belong to in the
same eight bytes (as NCCL's protocol LL does): these arrive together, so nobody waits for anything else before, between
or behind.  A rank has two halves of memory for what arrives, in turn: who is at the sum after next has what all others
sent for the next one, which they began when they had read what was sent for this one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow

WORD = 4  #: bytes that are sent together
MULTIPLE = 16  #: of bytes: neighbouring words are read and written at once
BLOCK = 512  #: words of a program, the same ones in every sum
LAST = (1 << 31) - 2  #: number of a sum, even, upon which 1 follows: 0 is what memory has that was not written yet


@triton.jit(do_not_specialize=["count"])
def _sum(
    x, out, inboxes, numbers, count, RANK: tl.constexpr, RANKS: tl.constexpr, CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr, TOGETHER: tl.constexpr, LAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """x of `count` times TOGETHER words; `inboxes` [RANKS] are the addresses of every rank's memory for what arrives
    [2, RANKS, CAPACITY], and `numbers` says for each program how many sums it has taken part in."""
    follow(OVERLAP)
    program = tl.program_id(0)
    word = program * BLOCK + tl.arange(0, BLOCK)
    there = word // TOGETHER < count
    before = tl.load(numbers + program)
    number = tl.where(before == LAST, 1, before + 1)
    own = tl.load(x.to(tl.pointer_type(tl.int32)) + word, mask=there, other=0)
    packets = (number.to(tl.int64) << 32) | (own.to(tl.int64) & 0xFFFFFFFF)
    half = number % 2 * (RANKS * CAPACITY)
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            place = _inbox_of(rank, inboxes) + half + RANK * CAPACITY + word
            tl.store(place, packets, mask=there, cache_modifier=".wt")
    inbox = _inbox_of(RANK, inboxes) + half + word
    dtype: tl.constexpr = out.dtype.element_ty
    first = tl.zeros([BLOCK], tl.float32)  # the number in a word, or of two the first one
    second = tl.zeros([BLOCK], tl.float32)
    for rank in tl.static_range(RANKS):
        arrived = own
        if rank != RANK:
            arrived = _arrived(inbox + rank * CAPACITY, there, number)
        if dtype == tl.float32:
            first += arrived.to(tl.float32, bitcast=True)
        else:
            first += arrived.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
            second += (arrived >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    if dtype == tl.float32:
        total = first.to(tl.int32, bitcast=True)
    else:
        total = _bits(first, dtype) | (_bits(second, dtype) << 16)
    tl.store(out.to(tl.pointer_type(tl.int32)) + word, total, mask=there)
    tl.debug_barrier()  # of all threads, each of which has read the number
    tl.store(numbers + program, number)


@triton.jit
def _inbox_of(rank, inboxes):
    return tl.multiple_of(tl.load(inboxes + rank).to(tl.pointer_type(tl.int64)), 16)


@triton.jit
def _bits(x, dtype: tl.constexpr):
    """float32 -> the bits of a number of 16 bits, in int32"""
    return x.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def _arrived(inbox, there, number):
    """The words of sum `number`, when all are there."""
    packets = tl.load(inbox, mask=there, other=0, volatile=True)
    while tl.max(tl.where(there & ((packets >> 32).to(tl.int32) != number), 1, 0)) > 0:
        packets = tl.load(inbox, mask=there, other=0, volatile=True)
    return packets.to(tl.int32)


_SUM = Kernel(_sum)


def sum_of_ranks(x: Tensor, inboxes: Tensor, numbers: Tensor, rank: int, capacity: int) -> Tensor:
    """The sum of every rank's x, in float32 in the order of ranks and then rounded; all make the same sums.

    Args:
        x: of a multiple of MULTIPLE bytes, at most `capacity` words; begins at a word.
        inboxes: [R] int64, addresses of int64 [2, R, capacity] on each rank, zeros before the first sum.
        numbers: [`programs_of` capacity] int32 on this rank, zeros before the first sum.
    """
    out, words, together = torch.empty_like(x), x.nbytes // WORD, MULTIPLE // WORD
    constants = {"RANK": rank, "RANKS": len(inboxes), "CAPACITY": capacity, "BLOCK": BLOCK, "TOGETHER": together}
    constants["LAST"] = LAST
    _SUM.launch((programs_of(words), 1, 1), (x, out, inboxes, numbers, words // together), constants)
    return out


def programs_of(words: int) -> int:
    """That a sum of so many takes."""
    return triton.cdiv(words, BLOCK)
