"""Products of many rows with the gated activation in them, so that gate and up are never in memory.

Programs stay, one on each multiprocessor, and take one tile after the other; the chip copies tiles by itself, those of
the next product while the last one is activated and written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.activation import gated
from tgi_core.triton.chip import chip_of
from tgi_core.triton.launch import ALIGNMENT, Kernel, in_tiles, is_in_tiles
from tgi_core.triton.overlap import follow
from tgi_core.triton.scores import product

FEWEST_ROWS = 1024  #: for which it is faster than PyTorch's product and an activation, as measured on an H200
ROWS, OUTPUTS, INPUTS, WARPS, STAGES = 128, 128, 64, 8, 4  #: of a tile, the fastest of six there
NEIGHBOURS = 8  #: tiles of rows that are multiplied with the same weights before other weights are read


@triton.jit(do_not_specialize=["rows"])
def _gated_product(
    x, weight, out, rows, M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, NEIGHBOURS: tl.constexpr, PROGRAMS: tl.constexpr, KIND: tl.constexpr, UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [rows, N], weight [2, M, N] of gates and ups -> out [rows, M], all in tiles; a program: every PROGRAMS-th."""
    follow(OVERLAP)
    row_tiles = tl.cdiv(rows, ROWS)
    output_tiles: tl.constexpr = (M + OUTPUTS - 1) // OUTPUTS
    group: tl.constexpr = NEIGHBOURS * output_tiles
    for tile in tl.range(tl.program_id(0), row_tiles * output_tiles, PROGRAMS, flatten=True):
        first = tile // group * NEIGHBOURS
        neighbours = tl.minimum(row_tiles - first, NEIGHBOURS)
        row = (first + tile % group % neighbours) * ROWS
        m = tile % group // neighbours * OUTPUTS
        both = tl.zeros([ROWS, 2 * OUTPUTS], tl.float32)
        for n in range(0, N, INPUTS):
            w = weight.load([0, m, n]).reshape(2 * OUTPUTS, INPUTS)
            both += product(x.load([row, n]), w.T, UPCAST)
        gate, up = tl.split(both.reshape(ROWS, 2, OUTPUTS).permute(0, 2, 1))
        dtype: tl.constexpr = out.dtype
        y = gated(gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32), dtype, KIND)
        out.store([row, m], y.to(dtype))


_GATED_PRODUCT = Kernel(_gated_product)


def gated_product(x: Tensor, weight: Tensor, kind: str) -> Tensor | None:
    """x [T, N], weight [2 M, N], a kind of activation -> activation(x weight^T) [T, M]; None: PyTorch is faster."""
    chip = chip_of(x.device)
    if x.dim() != 2 or len(x) < FEWEST_ROWS or x.dtype.itemsize != 2 or not chip.is_hopper:
        return None
    x = x if x.stride(1) == 1 else x.contiguous()
    (rows, inputs), outputs = x.shape, len(weight) // 2
    weight = weight.view(2, outputs, inputs)
    if not (is_in_tiles(x) and is_in_tiles(weight)) or outputs * x.itemsize % ALIGNMENT:
        return None
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    constants = {
        "M": outputs,
        "N": inputs,
        "ROWS": ROWS,
        "OUTPUTS": OUTPUTS,
        "INPUTS": INPUTS,
        "NEIGHBOURS": NEIGHBOURS,
        "PROGRAMS": chip.multiprocessors,
        "KIND": kind,
        "UPCAST": _GATED_PRODUCT.interpreted,
    }
    tiles = triton.cdiv(rows, ROWS) * triton.cdiv(outputs, OUTPUTS)
    arguments = in_tiles(x, ROWS, INPUTS), in_tiles(weight, 2, OUTPUTS, INPUTS), in_tiles(out, ROWS, OUTPUTS), rows
    _GATED_PRODUCT.launch((min(constants["PROGRAMS"], tiles), 1, 1), arguments, constants, WARPS, STAGES)
    return out
