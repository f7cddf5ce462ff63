"""Keys and values between the dtypes of a model and of its KV cache."""

from __future__ import annotations

import triton
import triton.language as tl

NAN = tl.constexpr(0x7F)


@triton.jit
def narrowed(x, DTYPE: tl.constexpr):
    """x as a cache of DTYPE keeps it: see `round_to_cache`.

    Float8 is made of bits, as targets differ in how they convert: not all saturate, and not all round to even.
    """
    if DTYPE.is_fp8():
        is_e4m3: tl.constexpr = tl.float8e4nv == DTYPE
        mantissa: tl.constexpr = 3 if is_e4m3 else 2
        bias: tl.constexpr = 7 if is_e4m3 else 15
        largest: tl.constexpr = 448.0 if is_e4m3 else 57344.0
        shift: tl.constexpr = 23 - mantissa
        # from here on float32 lie as far apart as the smallest float8: added to one, it rounds it
        anchor: tl.constexpr = 2.0 ** (shift + 1 - bias)
        anchor_bits: tl.constexpr = (127 + shift + 1 - bias) << 23
        x = x.to(tl.float32)
        size = tl.abs(x)
        size = tl.where(size > largest, largest, size)
        bits = size.to(tl.int32, bitcast=True)
        half_to_even = (1 << (shift - 1)) - 1 + ((bits >> shift) & 1)
        normal = ((bits + half_to_even) >> shift) - ((127 - bias) << mantissa)
        small = (size + anchor).to(tl.int32, bitcast=True) - anchor_bits
        code = tl.where(size < 2.0 ** (1 - bias), small, normal)
        code = tl.where(size == size, code, NAN)
        sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
        return (code | sign).to(tl.uint8).to(DTYPE, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def widened(x, DTYPE: tl.constexpr, UPCAST: tl.constexpr):
    """x of a cache in the model's DTYPE, to multiply with it; UPCAST: in float32, see `product`."""
    if not x.dtype.is_fp8():
        return x
    elif UPCAST:
        return x.to(tl.float32)
    else:
        return x.to(DTYPE)
