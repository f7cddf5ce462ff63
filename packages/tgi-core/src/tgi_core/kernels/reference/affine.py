"""Weights that a checkpoint keeps as levels, whose groups of inputs have a zero and a scale."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4096  #: expanded at a time


class Levels(NamedTuple):
    """weight [M, N] = (level - zero) * scale"""

    levels: Tensor  #: [M, N] uint8
    zeros: Tensor  #: [M, N] uint8
    scales: Tensor  #: [M, N] float16


def encode(levels: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """(levels [..], zeros [..] int32, scales [..] float16) -> codes [..] int32, see `AffineLinearKernel.pack`."""
    return levels | zeros << 8 | scales.view(torch.int16).int() << 16


def decode(codes: Tensor) -> Levels:
    """What `encode` took."""
    scales = (codes >> 16).to(torch.int16).view(torch.float16)
    return Levels((codes & 255).to(torch.uint8), (codes >> 8 & 255).to(torch.uint8), scales)


def expand(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """codes [M, N] -> the weight [M, N], in memory of its own"""
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for start in range(0, len(codes), ROWS):
        rows = decode(codes[start : start + ROWS])
        weight[start : start + ROWS] = (rows.levels.float() - rows.zeros) * rows.scales
    return weight


class AffineLinear:
    """The weight is expanded when it is packed."""

    keeps_levels = False

    def pack(self, weight: Tensor) -> Tensor:
        return expand(weight, torch.float32)

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, packed.to(x.dtype), bias)


linear_affine = AffineLinear()
