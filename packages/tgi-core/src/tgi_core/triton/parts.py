"""Rows of logits in parts of PART, each of which a program of its own looks at: one for a row would be alone on the
chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow

PART = 4096


@triton.jit
def survey(
    logits, tops, firsts, amounts, size: tl.constexpr, row_stride: tl.constexpr, BY_MASS: tl.constexpr,
    PART: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """See `surveyed`."""
    follow(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = part * PART + tl.arange(0, PART)
    there = columns < size
    x = tl.load(logits + row * row_stride + columns, mask=there, other=float("-inf")).to(tl.float32)
    top = tl.max(tl.where(x == x, x, float("-inf")))  # comparisons with NaN are not to hide other numbers
    if BY_MASS:
        amount = tl.sum(tl.exp(x - tl.where(top == float("-inf"), 0.0, top)))
    else:
        amount = tl.sum(tl.where(x > float("-inf"), 1.0, 0.0))
    at = row * tl.num_programs(1) + part
    tl.store(tops + at, top)
    tl.store(firsts + at, tl.min(tl.where((x == top) & there, columns, size)))
    tl.store(amounts + at, amount)


@triton.jit
def amounts_of(tops, amounts, row, part, BY_MASS: tl.constexpr, PARTS: tl.constexpr):
    """The highest logit of a row; of each of its parts [PADDED] the highest, and the mass as a share of that of the
    row's highest logit, or how many are finite."""
    highest = tl.load(tops + row * PARTS + part, mask=part < PARTS, other=float("-inf"))
    amount = tl.load(amounts + row * PARTS + part, mask=part < PARTS, other=0.0)
    top = tl.max(highest)
    if BY_MASS:
        amount *= tl.exp(highest - tl.where(top == float("-inf"), 0.0, top))
    return top, highest, amount


_SURVEY = Kernel(survey)


def surveyed(logits: Tensor, *, by_mass: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Of each part of logits [B, V] the highest logit, where it is first in its row, and the mass of all as a share of
    its own, or how many are finite: each [B, parts]."""
    (rows, size), parts = logits.shape, parts_of(logits.shape[1])["PARTS"]
    tops, amounts = numbers(logits.device, rows, parts), numbers(logits.device, rows, parts)
    firsts = torch.empty((rows, parts), dtype=torch.int32, device=logits.device)
    constants = {"size": size, "row_stride": logits.stride(0), "BY_MASS": by_mass, "PART": PART}
    _SURVEY.launch((rows, parts, 1), (logits, tops, firsts, amounts), constants)
    return tops, firsts, amounts


def parts_of(size: int) -> dict[str, int]:
    """Constants of kernels that put together what was found in the parts of so many logits."""
    parts = triton.cdiv(size, PART)
    return {"PARTS": parts, "PADDED": triton.next_power_of_2(parts)}


def numbers(device: torch.device, *shape: int) -> Tensor:
    """Memory that kernels write to."""
    return torch.empty(shape, dtype=torch.float32, device=device)
