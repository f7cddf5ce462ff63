"""Matrix products of few rows, which are bound by reading the weight.

PyTorch does the others, but in `FixedLinear`, and where `many_rows` activates what it multiplies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from tgi_core.kernels.ops import Activation
from tgi_core.kernels.reference.linear import Linear
from tgi_core.triton.activation import KINDS, gated
from tgi_core.triton.arrivals import MOST_GROUPS, arrivals, arrives_last
from tgi_core.triton.chip import chip_of
from tgi_core.triton.launch import Kernel
from tgi_core.triton.linear_tiles import (
    MOST_HELD,
    HeldTile,
    RowTile,
    Tile,
    fixed_tile,
    held_tile,
    is_held_late,
    is_late,
    row_tile,
    tile_of,
)
from tgi_core.triton.look_up import look_up
from tgi_core.triton.many_rows import gated_product
from tgi_core.triton.overlap import let_next_begin, wait_for_previous
from tgi_core.triton.scores import product

ROWS_AT_A_TIME = 64  #: at most


@triton.jit
def columns_of(weight, row, there, start, N: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows of weight [..., N], from column `start` on: [ROWS, COLUMNS]; row: int64, there: whether it is one."""
    n = start + tl.arange(0, COLUMNS)
    seen = there[:, None] & (n < N)[None, :]
    return tl.load(weight + row[:, None] * N + n[None, :], mask=seen, other=0.0, eviction_policy="evict_first")


@triton.jit
def rows_product(x, weight, first, row, there, N: tl.constexpr, COLUMNS: tl.constexpr):
    """x [N], rows of weight [..., N], their first columns -> [ROWS] in float32; see `columns_of`."""
    w = first
    total = tl.zeros(first.shape, tl.float32)
    for start in tl.static_range(0, N, COLUMNS):
        if start > 0:
            w = columns_of(weight, row, there, start, N, COLUMNS)
        n = start + tl.arange(0, COLUMNS)
        a = tl.load(x + n, mask=n < N, other=0.0).to(tl.float32)
        total += w.to(tl.float32) * a[None, :]
    return tl.sum(total, 1)


@triton.jit
def outputs_of(program, M: tl.constexpr, ROWS: tl.constexpr):
    """ROWS outputs of M, and whether they exist."""
    output = program * ROWS + tl.arange(0, ROWS)
    return output, output < M


@triton.jit
def rows_of(program, M: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr):
    """The rows of a weight [M, N], or with a KIND of activation [2 M, N], for ROWS outputs, and whether these exist.

    Of gate and up those for the same output are neighbours: [ROWS] or [2 ROWS] int64.
    """
    parts: tl.constexpr = 1 if KIND == "" else 2
    number, _ = outputs_of(program, M * parts, ROWS * parts)
    output = number // parts
    return (number % parts * M + output).to(tl.int64), output < M


@triton.jit
def gated_rows(y, dtype: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr):
    """[2 ROWS] as in `rows_of` -> [ROWS] in float32"""
    gate, up = tl.split(tl.reshape(y.to(dtype).to(tl.float32), [ROWS, 2]))
    return gated(gate, up, dtype, KIND)


@triton.jit
def _row_product(
    x, weight, bias, out, M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [N], weight [M, N], or with a KIND of activation [2 M, N] -> [M]; a program: a few outputs."""
    let_next_begin(OVERLAP)
    row, there = rows_of(tl.program_id(0), M, ROWS, KIND)
    first = columns_of(weight, row, there, 0, N, COLUMNS)
    wait_for_previous(OVERLAP)
    y = rows_product(x, weight, first, row, there, N, COLUMNS)
    dtype = out.dtype.element_ty
    if HAS_BIAS:
        y += tl.load(bias + row, mask=there, other=0.0).to(tl.float32)
    if KIND != "":
        y = gated_rows(y, dtype, ROWS, KIND)
    output, there = outputs_of(tl.program_id(0), M, ROWS)
    tl.store(out + output, y.to(dtype), mask=there)


@triton.jit
def _for_each_warp(w, WARPS: tl.constexpr):
    """[R, COLUMNS] -> [WARPS, R, COLUMNS / WARPS]"""
    return tl.permute(tl.reshape(w, [w.shape[0], WARPS, w.shape[1] // WARPS]), [1, 0, 2])


@triton.jit(do_not_specialize=["rows"])
def _held_product(
    x, weight, bias, out, rows, x_row: tl.constexpr, M: tl.constexpr, N: tl.constexpr, EACH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr, KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    LATE: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """`_row_product` of x [T, N], T <= EACH -> [T, M]: before their turn two blocks of weights are in registers, as
    matrix units take them; each of a program's WARPS multiplies a share of the inputs.  LATE: as in
    `_few_rows_product`."""
    if not LATE:
        let_next_begin(OVERLAP)
    parts: tl.constexpr = 1 if KIND == "" else 2
    row, there = rows_of(tl.program_id(0), M, ROWS, KIND)
    w = columns_of(weight, row, there, 0, N, COLUMNS)
    following = w
    if COLUMNS < N:
        following = columns_of(weight, row, there, COLUMNS, N, COLUMNS)
    wait_for_previous(OVERLAP)
    t = tl.arange(0, EACH)
    given = t < rows
    share: tl.constexpr = COLUMNS // WARPS
    y = tl.zeros([WARPS, ROWS * parts, EACH], tl.float32)
    for start in tl.static_range(0, N, COLUMNS):
        n = start + tl.arange(0, WARPS)[:, None, None] * share + tl.arange(0, share)[None, :, None]
        a = tl.load(x + t[None, None, :] * x_row + n, mask=given[None, None, :] & (n < N), other=0.0)
        y += product(_for_each_warp(w, WARPS), a, UPCAST)
        w = following
        if start + 2 * COLUMNS < N:
            following = columns_of(weight, row, there, start + 2 * COLUMNS, N, COLUMNS)
    if LATE:
        let_next_begin(OVERLAP)
    y = tl.sum(y, 0)
    dtype = out.dtype.element_ty
    if HAS_BIAS:
        y += tl.load(bias + row, mask=there, other=0.0).to(tl.float32)[:, None]
    if KIND != "":
        gate, up = tl.split(tl.permute(tl.reshape(y.to(dtype).to(tl.float32), [ROWS, 2, EACH]), [0, 2, 1]))
        y = gated(gate, up, dtype, KIND)
    output, there = outputs_of(tl.program_id(0), M, ROWS)
    tl.store(out + t[None, :] * M + output[:, None], y.to(dtype), mask=there[:, None] & given[None, :])


@triton.jit(do_not_specialize=["rows"])
def _few_rows_product(
    x, weight, bias, out, partial, arrived, rows, x_row: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, SPLITS: tl.constexpr, KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr, LATE: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [T, N], weight [M, N], or with a KIND of activation [2 M, N] -> [T, M]; a program: some outputs and rows, and
    one of SPLITS of the inputs, which the last program of a tile adds up.  LATE: the next kernel begins when the weight
    is read, so that fewer of those behind it hold memory of the chip while they wait."""
    tl.static_assert(SPLITS == 1 or KIND == "", "gate and up are not added up")
    if not LATE:
        let_next_begin(OVERLAP)
    wait_for_previous(OVERLAP)
    first = tl.program_id(0) * ROWS
    x += first.to(tl.int64) * x_row
    out += first.to(tl.int64) * M
    m, there = outputs_of(tl.program_id(1), M, OUTPUTS)
    row = tl.arange(0, ROWS)
    given = row < rows - first
    n = tl.arange(0, INPUTS)
    w_there = weight + m.to(tl.int64)[:, None] * N + n[None, :]
    x_there = x + row[None, :] * x_row + n[:, None]
    y = tl.zeros([OUTPUTS, ROWS], tl.float32)
    up = tl.zeros([OUTPUTS, ROWS], tl.float32)
    share: tl.constexpr = (N + INPUTS * SPLITS - 1) // (INPUTS * SPLITS) * INPUTS
    begin, end = 0, N
    if SPLITS > 1:
        begin = tl.program_id(2) * share
        end = tl.minimum(begin + share, N)
    for start in range(begin, end, INPUTS):
        w_seen, x_seen = there[:, None], given[None, :]
        if N % INPUTS != 0:
            left = n < N - start
            w_seen, x_seen = w_seen & left[None, :], x_seen & left[:, None]
        a = tl.load(x_there + start, mask=x_seen, other=0.0)
        w = tl.load(w_there + start, mask=w_seen, other=0.0, eviction_policy="evict_first")
        y += product(w, a, UPCAST)
        if KIND != "":
            w = tl.load(w_there + M * N + start, mask=w_seen, other=0.0, eviction_policy="evict_first")
            up += product(w, a, UPCAST)
    if LATE:
        let_next_begin(OVERLAP)
    is_last = True
    if SPLITS > 1:
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        y, is_last = _added_up(y, partial, arrived + tile, tile, ROWS, OUTPUTS, SPLITS)
    if is_last:
        dtype = out.dtype.element_ty
        if HAS_BIAS:
            y += tl.load(bias + m, mask=there, other=0.0).to(tl.float32)[:, None]
        if KIND != "":
            y = gated(y.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32), dtype, KIND)
        tl.store(out + row[None, :] * M + m[:, None], y.to(dtype), mask=there[:, None] & given[None, :])


@triton.jit
def _added_up(y, partial, arrived, tile, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, SPLITS: tl.constexpr):
    """A split's y [OUTPUTS, ROWS] of a tile -> the sum of all splits', always in the same order, and whether it is
    there: the program that arrives last gets it."""
    size: tl.constexpr = OUTPUTS * ROWS
    place = tl.arange(0, ROWS)[None, :] * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    there = partial + tile.to(tl.int64) * SPLITS * size + place
    tl.store(there + tl.program_id(2) * size, y)
    is_last = arrives_last(arrived, SPLITS)
    if is_last:
        y = tl.zeros([OUTPUTS, ROWS], tl.float32)
        for split in tl.static_range(SPLITS):
            y += tl.load(there + split * size, cache_modifier=".cg")  # written by other multiprocessors
    return y, is_last


_ROW_PRODUCT, _HELD_PRODUCT, _FEW_ROWS_PRODUCT = map(Kernel, (_row_product, _held_product, _few_rows_product))


class TritonLinear(Linear):
    """The weight stays as it is."""

    def rows(self, packed: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See `RowsKernel`."""
        return look_up(packed, ids).to(dtype)


class FewRowsLinear(TritonLinear):
    """Takes the fastest tile for the number of rows."""

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        out = self._product(x, packed, bias, "")
        return F.linear(x, packed, bias) if out is None else out

    def gated(self, x: Tensor, packed: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
        """See `GatedLinearKernel`."""
        kind, out = KINDS.get(activation, ""), None
        if kind and bias is None:
            out = self._product(x, packed, bias, kind)
            out = gated_product(x, packed, kind) if out is None else out
        return activation(self(x, packed, bias)) if out is None else out

    def _product(self, x: Tensor, packed: Tensor, bias: Tensor | None, kind: str) -> Tensor | None:
        """None: something else is faster."""
        tile = _fastest(x, packed)
        if tile is None:
            return None
        outputs, inputs = len(packed) // 2 if kind else len(packed), packed.shape[1]
        x = x if x.stride(1) == 1 else x.contiguous()
        out = torch.empty((len(x), outputs), dtype=x.dtype, device=x.device)
        constants = {"M": outputs, "N": inputs, "KIND": kind, "HAS_BIAS": bias is not None}
        if isinstance(tile, RowTile):
            _multiply_row(x, packed, bias, out, constants, tile)
        elif isinstance(tile, HeldTile):
            _multiply_held(x, packed, bias, out, constants, tile)
        else:
            tile = tile._replace(splits=1) if kind else tile  # gate and up are not added up
            constants["ROWS"] = min(ROWS_AT_A_TIME, max(16, triton.next_power_of_2(len(x))))
            constants["OUTPUTS"] = _outputs_at_once(tile.outputs, kind)
            constants["INPUTS"] = tile.inputs
            _multiply(x, packed, bias, out, constants, tile)
        return out


def _fastest(x: Tensor, weight: Tensor) -> RowTile | HeldTile | Tile | None:
    """None: PyTorch is."""
    rows = len(x) if x.dim() == 2 else 0
    if rows == 1:
        return row_tile(*weight.shape)
    if rows and x.dtype.itemsize == 2 and chip_of(x.device).is_hopper:
        return held_tile(rows, *weight.shape) or tile_of(rows, *weight.shape)
    return None


def _multiply_row(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, constants: dict[str, Any], tile: RowTile
) -> None:
    at_once = _outputs_at_once(tile.rows, constants["KIND"])
    constants = {**constants, "ROWS": at_once, "COLUMNS": tile.columns}
    _ROW_PRODUCT.launch((triton.cdiv(out.shape[1], at_once), 1, 1), (x, weight, bias, out), constants, tile.warps)


def _multiply_held(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, constants: dict[str, Any], tile: HeldTile
) -> None:
    (rows, outputs), kind = out.shape, constants["KIND"]
    at_once = _outputs_at_once(tile.rows, kind)
    more = {"x_row": x.stride(0), "EACH": MOST_HELD, "ROWS": at_once, "COLUMNS": tile.columns, "WARPS": tile.warps}
    more |= {"LATE": is_held_late(outputs, x.shape[1], kind), "UPCAST": _HELD_PRODUCT.interpreted}
    grid = triton.cdiv(outputs, at_once), 1, 1
    _HELD_PRODUCT.launch(grid, (x, weight, bias, out, rows), {**constants, **more}, tile.warps)


def _outputs_at_once(rows: int, kind: str) -> int:
    """Of a program that takes so many rows of a weight."""
    return rows // 2 if kind else rows


def _multiply(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, constants: dict[str, Any], tile: Tile
) -> None:
    rows, outputs = out.shape
    more = {"x_row": x.stride(0), "SPLITS": tile.splits, "UPCAST": _FEW_ROWS_PRODUCT.interpreted}
    more["LATE"] = is_late(outputs, x.shape[1], constants["KIND"])
    grid = triton.cdiv(rows, constants["ROWS"]), triton.cdiv(outputs, constants["OUTPUTS"]), tile.splits
    partial = arrived = None
    if tile.splits > 1:
        if grid[0] * grid[1] > MOST_GROUPS:
            raise ValueError(f"{rows} x {outputs} outputs are more than {MOST_GROUPS} tiles, whose inputs are divided")
        size = math.prod(grid) * constants["ROWS"] * constants["OUTPUTS"]
        partial, arrived = torch.empty(size, dtype=torch.float32, device=x.device), arrivals(x.device)
    arguments = x, weight, bias, out, partial, arrived, rows
    _FEW_ROWS_PRODUCT.launch(grid, arguments, {**constants, **more}, tile.warps, tile.stages)


class FixedLinear(TritonLinear):
    """Adds up in the same order whatever the number of rows: each is multiplied in the same tile."""

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        return self._product(x, packed, bias, "")

    def gated(self, x: Tensor, packed: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
        """See `GatedLinearKernel`."""
        kind = KINDS.get(activation, "")
        return self._product(x, packed, None, kind) if kind and bias is None else activation(self(x, packed, bias))

    def _product(self, x: Tensor, packed: Tensor, bias: Tensor | None, kind: str) -> Tensor:
        outputs, inputs = len(packed) // 2 if kind else len(packed), packed.shape[1]
        x = x if x.stride(1) == 1 else x.contiguous()
        out = torch.empty((len(x), outputs), dtype=x.dtype, device=x.device)
        if len(x):
            rows, tile = fixed_tile(len(packed), x.dtype.itemsize, chip_of(x.device).shared_bytes)
            shape = {"M": outputs, "N": inputs, "KIND": kind, "HAS_BIAS": bias is not None}
            at_once = tile.outputs // 2 if kind and tile.outputs > 16 else tile.outputs
            constants = {**shape, "ROWS": rows, "OUTPUTS": at_once, "INPUTS": tile.inputs}
            _multiply(x, packed, bias, out, constants, tile)
        return out


linear, fixed_linear = FewRowsLinear(), FixedLinear()
