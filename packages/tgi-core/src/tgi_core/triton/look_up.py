"""Rows of a table.  A program copies a part of one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.launch import Kernel, indices
from tgi_core.triton.overlap import follow

BLOCK = 2048  #: elements of a program


@triton.jit
def _look_up(table, rows, out, size: tl.constexpr, stride: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < size
    row = tl.load(rows + token)
    tl.store(out + token * size + column, tl.load(table + row * stride + column, mask=there), mask=there)


_LOOK_UP = Kernel(_look_up)


def look_up(table: Tensor, rows: Tensor) -> Tensor:
    """See `Kernels.look_up`."""
    table, rows = table if table.stride(-1) == 1 else table.contiguous(), rows.contiguous()
    shape = (len(rows), *table.shape[1:])
    is_index = table.dtype is torch.int64  # of tokens, say, which are looked up in turn
    out = indices(*shape, device=table.device) if is_index else table.new_empty(shape)
    size = out.numel() // max(1, len(rows))
    if out.numel():
        block = min(BLOCK, triton.next_power_of_2(size))
        constants = {"size": size, "stride": table.stride(0), "BLOCK": block}
        grid = len(rows), triton.cdiv(size, block), 1
        _LOOK_UP.launch(grid, (table, rows, out), constants, max(1, min(4, block // 256)))
    return out
