"""Norms.  Letters: T tokens, N features; a program handles one row of N."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import let_next_begin, wait_for_previous


@triton.jit
def _norm(
    x, residual, weight, bias, out, eps,
    heads: tl.constexpr, x_token: tl.constexpr, x_head: tl.constexpr, size: tl.constexpr, BLOCK: tl.constexpr,
    IS_RMS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    let_next_begin(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(OVERLAP)
    dtype = x.dtype.element_ty
    values = tl.load(x + row // heads * x_token + row % heads * x_head + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        there = residual + row * size + columns
        values = (values.to(tl.float32) + tl.load(there, mask=inside, other=0.0).to(tl.float32)).to(dtype)
        tl.store(there, values, mask=inside)
    y = values.to(tl.float32)
    if not IS_RMS:
        y = tl.where(inside, y - tl.sum(y) / size, 0.0)
    y *= tl.rsqrt(tl.sum(y * y) / size + eps)
    if IS_RMS:  # rounded before it is multiplied, as the reference is
        y = y.to(dtype).to(tl.float32)
    y *= scale
    if HAS_BIAS:
        y += offset
    tl.store(out + row * size + columns, y.to(dtype), mask=inside)


_NORM = Kernel(_norm)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., N]; see `Kernels.rms_norm`."""
    return _launch(x, None, weight, None, eps, is_rms=True)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `Kernels.add_rms_norm`; the sum is written over `residual`."""
    residual = residual.contiguous()
    return _launch(x, residual, weight, None, eps, is_rms=True), residual


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """x [..., N]; see `Kernels.layer_norm`."""
    return _launch(x, None, weight, bias, eps, is_rms=False)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `Kernels.add_layer_norm`; the sum is written over `residual`."""
    residual = residual.contiguous()
    return _launch(x, residual, weight, bias, eps, is_rms=False), residual


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, *, is_rms: bool
) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x if x.dim() in (2, 3) and x.stride(-1) == 1 else x.reshape(-1, x.shape[-1])
    heads = rows.shape[1] if rows.dim() == 3 else 1
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    count = out.numel() // size
    if count:
        constants = {
            "heads": heads,
            "x_token": rows.stride(0),
            "x_head": rows.stride(1) if heads > 1 else 0,
            "size": size,
            "BLOCK": block,
            "IS_RMS": is_rms,
            "HAS_RESIDUAL": residual is not None,
            "HAS_BIAS": bias is not None,
        }
        _NORM.launch((count, 1, 1), (rows, residual, weight, bias, out, eps), constants, min(16, max(1, block // 512)))
    return out
