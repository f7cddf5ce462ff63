"""Rotary position embedding (arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.kernels.ops import Frequencies


def angles(positions: Tensor, frequencies: Frequencies) -> tuple[Tensor, Tensor]:
    """Cosines and sines of what each position turns each pair of dimensions by."""
    inverse, factor, late = frequencies
    if late is not None:
        inverse = torch.where(positions.unsqueeze(-1) < late.first, inverse, late.inverse)
    turned = positions.unsqueeze(-1).float() * inverse
    return turned.cos() * factor, turned.sin() * factor


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the two halves of each head's first R dimensions by its position."""
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    low, high, rest = torch.split(x.float(), [half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1).to(x.dtype)
