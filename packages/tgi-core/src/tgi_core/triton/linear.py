"""Matrix products of a single row, which are bound by reading the weight; PyTorch does the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.kernels.reference.linear import Linear
from tgi_core.triton.launch import Kernel

COLUMNS, WARPS = 1024, 4  #: of the weight that a program reads at a time
LONG_ROW = 2048  #: inputs from which on a program takes one row of the weight
ROWS = 4  #: that a program takes of shorter ones


@triton.jit
def rows_product(x, weight, row, there, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """x [N], rows of weight [..., N] -> [ROWS] in float32; row: int64, there: whether it is one."""
    column = tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, N, COLUMNS):
        n = start + column
        inside = n < N
        a = tl.load(x + n, mask=inside, other=0.0).to(tl.float32)
        at = row[:, None] * N + n[None, :]
        w = tl.load(weight + at, mask=there[:, None] & inside[None, :], other=0.0, eviction_policy="evict_first")
        total += w.to(tl.float32) * a[None, :]
    return tl.sum(total, 1)


@triton.jit
def _row_product(
    x, weight, bias, out, M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """x [N], weight [M, N] -> [M]; a program: a few rows of the weight."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < M
    y = rows_product(x, weight, row.to(tl.int64), there, N, ROWS, COLUMNS)
    if HAS_BIAS:
        y += tl.load(bias + row, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row, y.to(out.dtype.element_ty), mask=there)


_ROW_PRODUCT = Kernel(_row_product)


class RowLinear(Linear):
    """The weight stays as it is."""

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] != 1 or x.dim() != 2:
            return F.linear(x, packed, bias)
        out = torch.empty((1, len(packed)), dtype=x.dtype, device=x.device)
        rows = 1 if packed.shape[1] >= LONG_ROW else ROWS
        constants = {
            "M": packed.shape[0],
            "N": packed.shape[1],
            "ROWS": rows,
            "COLUMNS": COLUMNS,
            "HAS_BIAS": bias is not None,
        }
        grid = triton.cdiv(len(packed), rows), 1, 1
        _ROW_PRODUCT.launch(grid, (x.contiguous(), packed, bias, out), constants, WARPS)
        return out


linear = RowLinear()
