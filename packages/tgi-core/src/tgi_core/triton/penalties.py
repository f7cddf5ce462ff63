"""Penalties on tokens that were there before.  A program handles BLOCK tokens of one row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tgi_core.kernels.ops import Penalties, TokenTables
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow

BLOCK = 4096


@triton.jit
def _penalize(
    logits, in_prompt, in_output, slots, repetition, frequency, presence, size: tl.constexpr, row_stride: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Logits of tokens that were not there, which are most, are not even read."""
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    counts = tl.load(slots + row) * size + columns
    output = tl.load(in_output + counts, mask=inside, other=0)
    seen = (tl.load(in_prompt + counts, mask=inside, other=0) > 0) | (output > 0)
    there = logits + row * row_stride + columns
    x = tl.load(there, mask=seen, other=0.0)
    factor = tl.load(repetition + row)
    x = tl.where(x < 0, x * factor, x / factor)
    x -= output.to(tl.float32) * tl.load(frequency + row)
    x -= tl.where(output > 0, tl.load(presence + row), 0.0)
    tl.store(there, x, mask=seen)


_PENALIZE = Kernel(_penalize)


def penalize(logits: Tensor, tables: TokenTables, slots: Tensor, penalties: Penalties) -> Tensor:
    """See `Kernels.penalize`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    rows, size = logits.shape
    if rows:
        constants = {"size": size, "row_stride": logits.stride(0), "BLOCK": BLOCK}
        grid = rows, triton.cdiv(size, BLOCK), 1
        _PENALIZE.launch(grid, (logits, *tables, slots, *penalties), constants)
    return logits
