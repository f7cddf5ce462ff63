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

from tgi_core.distributed.group import Norm
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow, let_next_begin, wait_for_previous

WORD = 4  #: bytes that are sent together
MULTIPLE = 16  #: of bytes: neighbouring words are read and written at once
BLOCK = 512  #: words of a program, the same ones in every sum
WORDS_OF_WARP = 128  #: of a row, whose sum is normed
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
    dtype: tl.constexpr = out.dtype.element_ty
    first, second = _exchanged(own, word, there, number, inboxes, dtype, RANK, RANKS, CAPACITY)
    tl.store(out.to(tl.pointer_type(tl.int32)) + word, _words(first, second, dtype), mask=there)
    tl.debug_barrier()  # of all threads, each of which has read the number
    tl.store(numbers + program, number)


@triton.jit
def _exchanged(
    own, place, there, number, inboxes, dtype: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    CAPACITY: tl.constexpr,
):  # fmt: skip
    """Send words to all others, to a place in their memory for sum `number` -> the sums [WORDS], in float32, of the
    number in each, or of two of 16 bits those of the first ones and those of the second ones."""
    packets = (number.to(tl.int64) << 32) | (own.to(tl.int64) & 0xFFFFFFFF)
    half = number % 2 * (RANKS * CAPACITY)
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            at = _inbox_of(rank, inboxes) + half + RANK * CAPACITY + place
            tl.store(at, packets, mask=there, cache_modifier=".wt")
    inbox = _inbox_of(RANK, inboxes) + half + place
    first, second = tl.zeros(own.shape, tl.float32), tl.zeros(own.shape, tl.float32)
    for rank in tl.static_range(RANKS):
        arrived = own
        if rank != RANK:
            arrived = _arrived(inbox + rank * CAPACITY, there, number)
        one, other = _numbers_in(arrived, dtype)
        first += one
        second += other
    return first, second


@triton.jit
def _numbers_in(words, dtype: tl.constexpr):
    """int32 -> the numbers of `dtype` in each, in float32: one, and nothing, or two"""
    if dtype == tl.float32:
        first, second = words.to(tl.float32, bitcast=True), tl.zeros(words.shape, tl.float32)
    else:
        first = words.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
        second = (words >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    return first, second


@triton.jit
def _words(first, second, dtype: tl.constexpr):
    """The other way round."""
    if dtype == tl.float32:
        words = first.to(tl.int32, bitcast=True)
    else:
        words = _bits(first, dtype) | (_bits(second, dtype) << 16)
    return words


@triton.jit
def _sum_and_norm(
    x, residual, weight, bias, out, inboxes, numbers, eps, RANK: tl.constexpr, RANKS: tl.constexpr,
    CAPACITY: tl.constexpr, SIZE: tl.constexpr, WORDS: tl.constexpr, IS_RMS: tl.constexpr, HAS_BIAS: tl.constexpr,
    LAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """`_sum` of a row of SIZE words, with two numbers each; the residual is added to it, and what comes of it is
    normed, as in `norm`."""
    let_next_begin(OVERLAP)
    dtype: tl.constexpr = out.dtype.element_ty
    word = tl.arange(0, WORDS)
    there = word < SIZE
    first_scale, second_scale = _numbers_at(weight, word, there, dtype)
    if HAS_BIAS:
        first_offset, second_offset = _numbers_at(bias, word, there, dtype)
    row = tl.program_id(0)
    at = row * SIZE + word
    wait_for_previous(OVERLAP)
    before = tl.load(numbers + row)
    number = tl.where(before == LAST, 1, before + 1)
    own = tl.load(x.to(tl.pointer_type(tl.int32)) + at, mask=there, other=0)
    old_first, old_second = _numbers_at(residual, at, there, dtype)
    first, second = _exchanged(own, at, there, number, inboxes, dtype, RANK, RANKS, CAPACITY)
    first, second = _rounded(first, dtype) + old_first, _rounded(second, dtype) + old_second
    total = _words(first, second, dtype)
    tl.store(residual.to(tl.pointer_type(tl.int32)) + at, total, mask=there)
    first, second = _numbers_in(total, dtype)
    count: tl.constexpr = 2 * SIZE
    if not IS_RMS:
        mean = tl.sum(first + second) / count
        first, second = tl.where(there, first - mean, 0.0), tl.where(there, second - mean, 0.0)
    factor = tl.rsqrt(tl.sum(first * first + second * second) / count + eps)
    first, second = first * factor, second * factor
    if IS_RMS:  # rounded before it is multiplied, as the reference is
        first, second = _rounded(first, dtype), _rounded(second, dtype)
    first, second = first * first_scale, second * second_scale
    if HAS_BIAS:
        first, second = first + first_offset, second + second_offset
    tl.store(out.to(tl.pointer_type(tl.int32)) + at, _words(first, second, dtype), mask=there)
    tl.debug_barrier()  # of all threads, each of which has read the number
    tl.store(numbers + row, number)


@triton.jit
def _numbers_at(x, word, there, dtype: tl.constexpr):
    """Of words in memory, see `_numbers_in`."""
    return _numbers_in(tl.load(x.to(tl.pointer_type(tl.int32)) + word, mask=there, other=0), dtype)


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    return x.to(dtype).to(tl.float32)


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


_SUM, _SUM_AND_NORM = Kernel(_sum), Kernel(_sum_and_norm)


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


def sum_and_norm(
    x: Tensor, residual: Tensor, norm: Norm, inboxes: Tensor, numbers: Tensor, rank: int, capacity: int
) -> tuple[Tensor, Tensor]:
    """See `NormingSums.sum_and_norm`; the sum is written over `residual`.

    Args:
        x: [T, N] of numbers of 16 bits; `capacity` words at most, and always with rows of as many bytes, a multiple of
            MULTIPLE.
        inboxes, rank, capacity: as in `sum_of_ranks`, of memory that only this takes.
        numbers: [at least T] int32 on this rank, zeros before the first sum.
    """
    (rows, features), residual = x.shape, residual.contiguous()
    out, size = torch.empty_like(x), features * x.itemsize // WORD
    words = triton.next_power_of_2(size)
    constants = {"RANK": rank, "RANKS": len(inboxes), "CAPACITY": capacity, "SIZE": size, "WORDS": words}
    constants |= {"IS_RMS": norm.is_rms, "HAS_BIAS": norm.bias is not None, "LAST": LAST}
    arguments = x, residual, norm.weight, norm.bias, out, inboxes, numbers, norm.eps
    _SUM_AND_NORM.launch((rows, 1, 1), arguments, constants, min(16, max(1, words // WORDS_OF_WARP)))
    return out, residual


def programs_of(words: int) -> int:
    """That a sum of so many takes."""
    return triton.cdiv(words, BLOCK)
