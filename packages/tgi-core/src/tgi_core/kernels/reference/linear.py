"""Matrix products."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """The weight stays as it is."""

    def pack(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, packed, bias)

    def rows(self, packed: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, packed).to(dtype)


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

    def rows(self, packed: tuple[Tensor, Tensor], ids: Tensor, dtype: torch.dtype) -> Tensor:
        rounded, scales = packed
        return (rounded[ids] * scales[ids].unsqueeze(1)).to(dtype)


linear_int8 = Int8Linear()


GROUP = 32  #: neighbouring inputs of an output that share a step and an offset
LEVELS = 16  #: of a group: offset, offset + step, ...
STEPS, ROUNDS = 5, 2  #: of the search for a group's step and offset


class Int4Weight(NamedTuple):
    """weight [M, N] ~ (level * step + offset - 128) * scale, where level * step + offset is a byte; in G groups."""

    inputs: int
    levels: Tensor  #: [M, G, GROUP / 2] uint8: of a group's first half in the low four bits, of its second in the high
    steps: Tensor  #: [M, G] uint8
    offsets: Tensor  #: [M, G] uint8
    scales: Tensor  #: [M] float32

    def dequantize(self) -> Tensor:
        """[M, N] float32"""
        levels = torch.cat((self.levels & 15, self.levels >> 4), -1).float()
        rounded = levels * self.steps.unsqueeze(-1) + (self.offsets.float() - 128).unsqueeze(-1)
        return rounded.flatten(1)[:, : self.inputs] * self.scales.unsqueeze(1)


def quantize_groups(weight: Tensor, importance: Tensor | None = None) -> Int4Weight:
    """Round weight [M, N] so that the squared errors of each group sum up to little.

    Args:
        importance: [N] of the errors at each input; the mean square of what is multiplied there is best.
    """
    parts = [_quantize_groups(rows.float(), importance) for rows in torch.split(weight, ROWS)]
    return Int4Weight(weight.shape[1], *(torch.cat(part) for part in zip(*parts, strict=True)))


def _quantize_groups(weight: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(levels, steps, offsets, scales) of some rows.

    Steps are tried from the least that spans a group's range down; for each, the offset is the mean of what the levels
    leave over, in turns with the nearest levels.
    """
    largest = weight.abs().amax(1)
    x = weight * torch.where(largest > 0, LARGEST / largest, 0).unsqueeze(1) + 128
    x, weights = _in_groups(x, 128.0), torch.ones_like(x[:1]) if importance is None else importance.unsqueeze(0)
    weights = _in_groups(weights, 0.0)
    total = weights.sum(-1, keepdim=True)
    total[total == 0] = 1
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    first = ((high - low) / (LEVELS - 1)).ceil().clamp(min=1)

    def levels(step: Tensor, offset: Tensor) -> Tensor:
        return _nearest(((x - offset) * (1 / step)).clamp(0, LEVELS - 1))

    least = torch.full_like(low, torch.inf)
    best_step, best_offset = first, low
    for down in range(STEPS):
        step = (first - down).clamp(min=1)
        top = 255 - step * (LEVELS - 1)
        offset = _nearest(((low + high) / 2 - step * ((LEVELS - 1) / 2)).clamp(min=0).minimum(top))
        for _ in range(ROUNDS):
            mean = ((x - step * levels(step, offset)) * weights).sum(-1, keepdim=True) / total
            offset = _nearest(mean.clamp(min=0).minimum(top))
        error = ((x - step * levels(step, offset) - offset).square() * weights).sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best_step, best_offset = torch.where(better, step, best_step), torch.where(better, offset, best_offset)
    found = levels(best_step, best_offset).to(torch.uint8)
    halves = found[..., : GROUP // 2] | found[..., GROUP // 2 :] << 4
    return halves, best_step.squeeze(-1).to(torch.uint8), best_offset.squeeze(-1).to(torch.uint8), largest / LARGEST


def _in_groups(rows: Tensor, filler: float) -> Tensor:
    """[M, N] -> [M, G, GROUP]"""
    return F.pad(rows, (0, -rows.shape[1] % GROUP), value=filler).view(len(rows), -1, GROUP)


def _nearest(x: Tensor) -> Tensor:
    """The nearest integers; halves go up."""
    return (x + 0.5).floor()


class Int4Linear:
    """The weight is stored in groups of int4, and multiplied in float32."""

    def pack(self, weight: Tensor, importance: Tensor | None = None) -> Int4Weight:
        return quantize_groups(weight, importance)

    def __call__(self, x: Tensor, packed: Int4Weight, bias: Tensor | None) -> Tensor:
        return F.linear(x.float(), packed.dequantize(), bias if bias is None else bias.float()).to(x.dtype)


linear_int4 = Int4Linear()
