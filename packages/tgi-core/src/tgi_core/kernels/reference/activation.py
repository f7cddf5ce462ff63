"""Activations of feed-forward layers, gated (arXiv 2002.05202) and not."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_and_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate) * up


def gelu_tanh_and_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up, with the approximation."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's cumulative probability of x."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Its approximation by tanh."""
    return F.gelu(x, approximate="tanh")
