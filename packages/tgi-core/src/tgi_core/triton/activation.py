"""Gated activations."""

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
def gated(gate, up, dtype: tl.constexpr, KIND: tl.constexpr):
    """activation(gate) * up of numbers in float32; the activation is rounded to dtype first, as the reference is."""
    if KIND == "silu":
        active = gate * tl.sigmoid(gate)
    elif KIND == "gelu":
        active = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:  # (1 + tanh(z)) / 2 = sigmoid(2 z)
        active = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    return active.to(dtype).to(tl.float32) * up


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


_ACTIVATE = Kernel(_activate_and_multiply)


def _gated(kind: str) -> Activation:
    def run(gate_up: Tensor) -> Tensor:
        gate_up = gate_up if gate_up.stride(-1) == 1 else gate_up.contiguous()
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
        if rows:
            constants = {"size": size, "row_stride": gate_up.stride(0), "KIND": kind, "BLOCK": BLOCK}
            _ACTIVATE.launch((rows, triton.cdiv(size, BLOCK), 1), (gate_up, out), constants)
        return out

    return run


silu_and_mul = _gated("silu")
gelu_and_mul = _gated("gelu")
gelu_tanh_and_mul = _gated("gelu_tanh")

#: what kernels that begin or end with an activation call it
KINDS: dict[Activation, str] = {
    silu_and_mul: "silu",
    gelu_and_mul: "gelu",
    gelu_tanh_and_mul: "gelu_tanh",
    reference.silu_and_mul: "silu",
    reference.gelu_and_mul: "gelu",
    reference.gelu_tanh_and_mul: "gelu_tanh",
}
