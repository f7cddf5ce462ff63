"""Products of many rows, in which gate and up, where there are some, are activated and never in memory.

Programs stay, one on each multiprocessor, and take one tile after the other; the chip copies tiles by itself, those of
the next product while the last one is activated and written.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.triton.activation import gated
from tgi_core.triton.chip import chip_of
from tgi_core.triton.expert_tiles import NO_EXPERT
from tgi_core.triton.launch import ALIGNMENT, Kernel, in_tiles, is_in_tiles
from tgi_core.triton.overlap import follow
from tgi_core.triton.scores import product

FEWEST_ROWS = 1024  #: from which on it is faster than PyTorch's product and an activation, as measured on an H200;
BUSY = 0.8  #: and where one tile of rows gives at least so many of the multiprocessors a tile, and none of them two
#: of a tile, the fastest of six there; outputs of gate, and as many of up, or twice as many outputs
ROWS, OUTPUTS, INPUTS, WARPS, STAGES = 128, 128, 64, 8, 4
MOST_TILES = 1024  #: of rows of experts
NEIGHBOURS = 8  #: tiles of rows that are multiplied with the same weights before other weights are read


@triton.jit(do_not_specialize=["rows"])
def _many_rows_product(
    x, weight, out, experts, rows, M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, NEIGHBOURS: tl.constexpr, PROGRAMS: tl.constexpr, TILES: tl.constexpr, KIND: tl.constexpr,
    UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [rows, N], weight [E, 1, M, N], or with a KIND of activation [E, 2, M, N] -> out [rows, M], all in tiles; a
    program: every PROGRAMS-th.  With TILES > 0 each tile of rows, of which there are no more, has one of `experts`, and
    NO_EXPERT if it is behind the last one."""
    follow(OVERLAP)
    row_tiles = tl.cdiv(rows, ROWS)
    if TILES > 0:
        number = tl.arange(0, TILES)
        found = tl.load(experts + number, mask=number < row_tiles, other=NO_EXPERT)
        row_tiles = tl.sum((found != NO_EXPERT).to(tl.int32))
    step: tl.constexpr = 2 * OUTPUTS if KIND == "" else OUTPUTS
    output_tiles: tl.constexpr = (M + step - 1) // step
    group: tl.constexpr = NEIGHBOURS * output_tiles
    for tile in tl.range(tl.program_id(0), row_tiles * output_tiles, PROGRAMS, flatten=True):
        first = tile // group * NEIGHBOURS
        neighbours = tl.minimum(row_tiles - first, NEIGHBOURS)
        row_tile = first + tile % group % neighbours
        m = tile % group // neighbours * step
        expert = 0
        if TILES > 0:
            expert = tl.load(experts + row_tile)
        both = tl.zeros([ROWS, 2 * OUTPUTS], tl.float32)
        for n in range(0, N, INPUTS):
            w = weight.load([expert, 0, m, n]).reshape(2 * OUTPUTS, INPUTS)
            both += product(x.load([row_tile * ROWS, n]), w.T, UPCAST)
        one, other = tl.split(both.reshape(ROWS, 2, OUTPUTS).permute(0, 2, 1))
        dtype: tl.constexpr = out.dtype
        if KIND != "":
            one = gated(one.to(dtype).to(tl.float32), other.to(dtype).to(tl.float32), dtype, KIND)
        out.store([row_tile * ROWS, m], one.to(dtype))
        if KIND == "":
            out.store([row_tile * ROWS, m + OUTPUTS], other.to(dtype))


_MANY_ROWS_PRODUCT = Kernel(_many_rows_product)


def gated_product(x: Tensor, weight: Tensor, kind: str) -> Tensor | None:
    """x [T, N], weight [2 M, N], a kind of activation -> activation(x weight^T) [T, M]; None: PyTorch is faster."""
    outputs = len(weight) // 2
    if x.dim() != 2 or not _is_fast(len(x), outputs, chip_of(x.device).multiprocessors):
        return None
    x = x if x.stride(1) == 1 else x.contiguous()
    if not is_copied(x, weight, outputs):
        return None
    out = torch.empty((len(x), outputs), dtype=x.dtype, device=x.device)
    _multiply(x, weight.view(1, 2, outputs, -1), out, None, kind)
    return out


def _is_fast(rows: int, outputs: int, multiprocessors: int) -> bool:
    """Whether the kernel is, of gate and up with so many outputs each."""
    return rows >= FEWEST_ROWS or (rows <= ROWS and BUSY <= triton.cdiv(outputs, OUTPUTS) / multiprocessors <= 1)


def experts_product(x: Tensor, weight: Tensor, out: Tensor, experts: Tensor, kind: str) -> None:
    """x [S ROWS, N], weight [E, M, N], or with a kind of activation [E, 2 M, N] -> out [S ROWS, M], S <= MOST_TILES.

    Args:
        experts: one of each tile of ROWS, and NO_EXPERT of those behind the last one, see `expert_tiles.sort_pairs`.
    """
    _multiply(x, weight.view(len(weight), 2 if kind else 1, out.shape[1], -1), out, experts, kind)


def is_copied(x: Tensor, weight: Tensor, outputs: int) -> bool:
    """Whether the chip copies tiles of x, weight and as many outputs."""
    is_known = x.dtype.itemsize == 2 and chip_of(x.device).is_hopper
    return is_known and is_in_tiles(x) and is_in_tiles(weight) and not outputs * x.itemsize % ALIGNMENT


def _multiply(x: Tensor, weight: Tensor, out: Tensor, experts: Tensor | None, kind: str) -> None:
    """weight: [E, 2 or 1, M, N]"""
    rows, outputs = out.shape
    parts, step = (2, OUTPUTS) if kind else (1, 2 * OUTPUTS)
    constants: dict[str, Any] = {
        "M": outputs,
        "N": x.shape[1],
        "ROWS": ROWS,
        "OUTPUTS": OUTPUTS,
        "INPUTS": INPUTS,
        "NEIGHBOURS": NEIGHBOURS,
        "PROGRAMS": chip_of(x.device).multiprocessors,
        "TILES": 0 if experts is None else MOST_TILES,
        "KIND": kind,
        "UPCAST": _MANY_ROWS_PRODUCT.interpreted,
    }
    read = in_tiles(x, ROWS, INPUTS), in_tiles(weight, 1, parts, step, INPUTS), in_tiles(out, ROWS, OUTPUTS)
    grid = min(constants["PROGRAMS"], triton.cdiv(rows, ROWS) * triton.cdiv(outputs, step)), 1, 1
    _MANY_ROWS_PRODUCT.launch(grid, (*read, experts, rows), constants, WARPS, STAGES)
