"""Activations of feed-forward layers, gated and not."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.kernels.ops import Activation
from tgi_core.kernels.reference import activation as reference
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow

BLOCK = 1024


@triton.jit
def activated(x, KIND: tl.constexpr):
    """activation(x) of numbers in float32."""
    if KIND == "silu":
        return x * tl.sigmoid(x)
    elif KIND == "gelu":
        return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    else:  # (1 + tanh(z)) / 2 = sigmoid(2 z)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def gated(gate, up, dtype: tl.constexpr, KIND: tl.constexpr):
    """activation(gate) * up of numbers in float32; the activation is rounded to dtype first, as the reference is."""
    return activated(gate, KIND).to(dtype).to(tl.float32) * up


@triton.jit
def _activate_and_multiply(
    gate_up, out, size: tl.constexpr, row_stride: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    dtype = gate_up.dtype.element_ty
    gate = tl.load(gate_up + row * row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + size + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, gated(gate, up, dtype, KIND).to(dtype), mask=inside)


@triton.jit
def _activate(
    x, out, size: tl.constexpr, row_stride: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    values = tl.load(x + row * row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, activated(values, KIND).to(x.dtype.element_ty), mask=inside)


_ACTIVATE_AND_MULTIPLY, _ACTIVATE = Kernel(_activate_and_multiply), Kernel(_activate)


def _made(kind: str, kernel: Kernel, parts: int) -> Activation:
    """[T, parts N] -> [T, N]"""

    def run(x: Tensor) -> Tensor:
        x = x if x.stride(-1) == 1 else x.contiguous()
        rows, size = x.shape[0], x.shape[1] // parts
        out = torch.empty((rows, size), dtype=x.dtype, device=x.device)
        if rows:
            constants = {"size": size, "row_stride": x.stride(0), "KIND": kind, "BLOCK": BLOCK}
            kernel.launch((rows, triton.cdiv(size, BLOCK), 1), (x, out), constants)
        return out

    return run


silu_and_mul, gelu_and_mul, gelu_tanh_and_mul = (
    _made(kind, _ACTIVATE_AND_MULTIPLY, 2) for kind in ("silu", "gelu", "gelu_tanh")
)
gelu, gelu_tanh = (_made(kind, _ACTIVATE, 1) for kind in ("gelu", "gelu_tanh"))

#: what kernels that begin or end with an activation call it
KINDS: dict[Activation, str] = {
    silu_and_mul: "silu",
    gelu_and_mul: "gelu",
    gelu_tanh_and_mul: "gelu_tanh",
    reference.silu_and_mul: "silu",
    reference.gelu_and_mul: "gelu",
    reference.gelu_tanh_and_mul: "gelu_tanh",
}
