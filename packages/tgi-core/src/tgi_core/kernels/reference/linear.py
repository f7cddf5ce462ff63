"""Matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """The weight stays as it is."""

    def pack(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, packed, bias)


linear = Linear()


LARGEST = 127  #: of the int8 values that are used; -128 is not, so that the range is symmetric
ROWS = 4096  #: quantised at a time


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [M, N] -> (int8 [M, N], scales [M] float32), with weight ~ int8 * scale, to the nearest."""
    rounded = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), device=weight.device)
    for start in range(0, len(weight), ROWS):
        rows = weight[start : start + ROWS].float()
        scale = (rows.abs().amax(1) / LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
        rounded[start : start + ROWS] = (rows / scale.unsqueeze(1)).round_()
        scales[start : start + ROWS] = scale
    return rounded, scales


class Int8Linear:
    """The weight is stored as int8 with a scale for each output, and multiplied in the dtype of x."""

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return quantize_rows(weight)

    def __call__(self, x: Tensor, packed: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        rounded, scales = packed
        out = (x.float() @ rounded.float().T) * scales
        return (out if bias is None else out + bias).to(x.dtype)


linear_int8 = Int8Linear()
