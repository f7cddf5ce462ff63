"""Kernels; what they compute is defined by tgi_core.kernels.reference."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(x [..., N], weight [N], eps) -> [..., N]; see `tgi_core.kernels.ops.Kernels.rms_norm`."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """(gate_up [T, 2 N]) -> silu(gate) * up [T, N]"""
    gate, up = gate_up.unflatten(-1, (2, -1)).unbind(-2)
    return torch.nn.functional.silu(gate) * up
