"""The number formats of the KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.kernels.ops import KernelQuery

#: by the names of `Capabilities.kv_dtypes`; "model" is the dtype of the model
FLOAT8 = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def cache_dtype(query: KernelQuery) -> torch.dtype:
    """What keys and values are kept in."""
    kept: torch.dtype = FLOAT8[query.kv_dtype] if query.kv_dtype in FLOAT8 else getattr(torch, query.dtype)
    return kept


def round_to_cache(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values as the cache keeps them.

    Of float8: rounded to the nearest, half to even, with scale 1; what is larger than its largest number, infinity
    too, becomes that; NaN stays (OCP 8-bit Floating Point Specification, the saturating mode).
    """
    if dtype not in FLOAT8.values():
        return x.to(dtype)
    largest = torch.finfo(dtype).max
    return x.float().clamp(-largest, largest).to(dtype)


def put(cache: Tensor, slots: Tensor, x: Tensor) -> None:
    """Write x [T, Hkv, D] into a cache [slots, Hkv, D]; PyTorch moves float8 as bytes."""
    rounded = round_to_cache(x, cache.dtype)
    if cache.dtype in FLOAT8.values():
        cache, rounded = cache.view(torch.uint8), rounded.view(torch.uint8)
    cache[slots] = rounded


def take(cache: Tensor, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`cache[index]` in a dtype to compute with; None adds a dimension in front."""
    if cache.dtype in FLOAT8.values():
        return cache.view(torch.uint8)[index].view(cache.dtype).to(dtype)
    return cache[index]
