"""Feed-forward layers of experts in C++ (see native/moe.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tgi_core.cpu import kernels
from tgi_core.cpu.kernels import is_bf16
from tgi_core.cpu.linear import Packed, native_linear, native_linear_int4, native_linear_int8
from tgi_core.cpu.native import Expert, library
from tgi_core.kernels.ops import Activation, Experts, LinearKernel
from tgi_core.kernels.reference import moe as reference

KINDS: dict[Any, int] = {native_linear: 0, native_linear_int8: 1, native_linear_int4: 2}  # of native/moe.cpp
ACTIVATIONS: dict[Any, int] = {
    kernels.silu_and_mul: kernels.SILU,
    kernels.gelu_and_mul: kernels.GELU,
    kernels.gelu_tanh_and_mul: kernels.GELU_TANH,
}


class NativeExperts:
    """One call for all experts, so decodes can be recorded."""

    waits_for_device = False

    def __init__(self, kind: int, activation: int, gate_up: Sequence[Packed], down: Sequence[Packed]) -> None:
        self.kind, self.activation = kind, activation
        self.hidden, self.size = down[0].outputs, down[0].inputs
        self._kept = (*gate_up, *down)
        parts = zip(map(_pointers, gate_up), map(_pointers, down), strict=True)
        self._table = (Expert * len(down))(*(Expert(*wide, *narrow) for wide, narrow in parts))

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        x, chosen, weights = x.contiguous(), chosen.contiguous(), weights.contiguous()
        out = torch.empty_like(x)
        library().tgi_experts(
            is_bf16(x),
            self.kind,
            self.activation,
            ctypes.addressof(self._table),
            len(self._table),
            x.data_ptr(),
            len(x),
            self.hidden,
            self.size,
            chosen.data_ptr(),
            weights.data_ptr(),
            chosen.shape[1],
            out.data_ptr(),
        )
        return out


def experts(linear: LinearKernel, activation: Activation, gate_up: Sequence[Any], down: Sequence[Any]) -> Experts:
    """See `Kernels.experts`; as the reference does it where products or activation are not compiled."""
    linear = getattr(linear, "direct", linear)
    if linear not in KINDS or activation not in ACTIVATIONS:
        return reference.Experts(linear, activation, gate_up, down)
    return NativeExperts(KINDS[linear], ACTIVATIONS[activation], gate_up, down)


def _pointers(packed: Packed) -> tuple[int, int | None]:
    return packed.data.data_ptr(), packed.scales.data_ptr() if packed.scales is not None else None
