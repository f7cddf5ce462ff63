"""Puts keys and values into the cache."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.float8 import narrowed
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow


@triton.jit
def _store(
    k, v, keys, values, slots, k_token: tl.constexpr, v_token: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    if slot >= 0:  # padding has none
        k_new = narrowed(tl.load(k + token * k_token + columns, mask=inside), keys.dtype.element_ty)
        v_new = narrowed(tl.load(v + token * v_token + columns, mask=inside), values.dtype.element_ty)
        tl.store(keys + slot * SIZE + columns, k_new, mask=inside)
        tl.store(values + slot * SIZE + columns, v_new, mask=inside)


_STORE = Kernel(_store)


def store(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """k and v [T, Hkv, D], heads side by side, into keys and values [blocks, block_size, Hkv, D] at slots [T] int32.

    Padding has negative slots; a cache of float8 rounds (see `narrowed`).
    """
    size = k.shape[1] * k.shape[2]
    block = triton.next_power_of_2(size)
    warps = min(8, max(1, block // 256))
    constants = {"k_token": k.stride(0), "v_token": v.stride(0), "SIZE": size, "BLOCK": block}
    _STORE.launch((len(k), 1, 1), (k, v, keys, values, slots), constants, warps)
