"""Feed-forward layers of experts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from tgi_core.errors import UnsupportedKernel
from tgi_core.kernels import ops
from tgi_core.kernels.ops import Activation, LinearKernel
from tgi_core.kernels.reference import moe as reference
from tgi_core.kernels.reference.linear import Linear
from tgi_core.triton import expert_rows, expert_tiles, many_rows
from tgi_core.triton.activation import KINDS
from tgi_core.triton.chip import chip_of
from tgi_core.triton.launch import Kernel
from tgi_core.triton.rounded import RoundedLinear
from tgi_core.triton.rounded_experts import RoundedExperts, together
from tgi_core.triton.sorted_experts import Sorted, SortedExperts, Tile
from tgi_core.triton.tiles import SHARE

log = logging.getLogger(__name__)

LONG_ROW = 2048  #: inputs from which on a program takes one row of a weight
ROW = {"ROWS": 4, "COLUMNS": 512}  #: that a program reads at a time of shorter ones
BROUGHT = 1024  #: features of a pair that a program brings to its row
FIXED_PAIRS = 64  #: whose tile `FixedExperts` takes for any number

#: pairs of an expert, on average, up to which these serve: the fastest first, the last one fits everywhere; chips that
#: copy tiles by themselves take those of `many_rows` for most
SMALLEST = Tile(16, 32, 32, 4, 2)
TILES = {
    16: (Tile(16, 64, 128, 4, 3), Tile(16, 64, 64, 4, 3), SMALLEST),
    64: (Tile(64, 128, 64, 4, 3), Tile(64, 64, 64, 4, 2), SMALLEST),
    1 << 62: (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 2), Tile(64, 64, 64, 4, 2), SMALLEST),
}

WIDEN_ROWS, NARROW_ROWS = Kernel(expert_rows.widen_rows), Kernel(expert_rows.narrow_rows)
WIDEN_TILES, NARROW_TILES = Kernel(expert_tiles.widen_tiles), Kernel(expert_tiles.narrow_tiles)
BRING_TOGETHER = Kernel(expert_tiles.bring_together)


class TritonExperts(SortedExperts):
    """Keeps the weights of all experts as gate_up [E, 2 M, N] and down [E, N, M]."""

    def __init__(self, kind: str, gate_up: Sequence[Tensor], down: Sequence[Tensor]) -> None:
        self.kind, self.gate_up, self.down = kind, torch.stack(tuple(gate_up)), torch.stack(tuple(down))
        count, features, size = self.down.shape
        super().__init__(count, features, size, self.down.device)
        self._shape = {"M": self.size, "N": self.features}

    def _widen_rows(self, x: Tensor, chosen: Tensor, wide: Tensor) -> None:
        row = row_of(self.features)
        grid = len(wide), triton.cdiv(self.size, row["ROWS"]), 1
        constants = {"K": chosen.shape[1], **self._shape, "KIND": self.kind, **row}
        WIDEN_ROWS.launch(grid, (x, chosen, self.gate_up, wide), constants)

    def _narrow_rows(self, wide: Tensor, chosen: Tensor, weights: Tensor, out: Tensor) -> None:
        row = row_of(self.size)
        grid = len(out), triton.cdiv(self.features, row["ROWS"]), 1
        constants = {"K": chosen.shape[1], **self._shape, **row}
        NARROW_ROWS.launch(grid, (wide, chosen, weights, self.down, out), constants)

    def _tile(self, pairs: int, itemsize: int) -> Tile:
        return fitting(pairs / self.count, itemsize, self._chip.shared_bytes)

    def _constants(self, tile: Tile) -> dict[str, Any]:
        return {**self._shape, "ROWS": tile.rows, "INPUTS": tile.inputs, "UPCAST": self._chip.interprets}

    def _widen_tiles(self, x: Tensor, each: int, found: Sorted, wide: Tensor, tile: Tile) -> None:
        if _are_many(found, tile) and many_rows.is_copied(x, self.gate_up, self.size):
            rows = self._brought_together(x, each, found, tile.rows)
            many_rows.experts_product(rows, self.gate_up, wide, found.experts, self.kind)
            return
        columns = tile.columns // 2  # of gate, and as many of up
        grid = found.tiles, triton.cdiv(self.size, columns), 1
        arguments = x, found.order, found.experts, self.gate_up, wide, found.pairs
        constants = {"K": each, "KIND": self.kind, "COLUMNS": columns, **self._constants(tile)}
        WIDEN_TILES.launch(grid, arguments, constants, tile.warps, tile.stages)

    def _brought_together(self, x: Tensor, each: int, found: Sorted, of_tile: int) -> Tensor:
        """x [T, N], K = each -> [S ROWS, N]"""
        rows = torch.empty((found.tiles * of_tile, self.features), dtype=x.dtype, device=x.device)
        constants = {"K": each, "N": self.features, "ROWS": of_tile, "BLOCK": BROUGHT}
        grid = len(rows), triton.cdiv(self.features, BROUGHT), 1
        BRING_TOGETHER.launch(grid, (x, found.order, found.experts, rows, found.pairs), constants)
        return rows

    def _narrow_tiles(self, wide: Tensor, found: Sorted, y: Tensor, tile: Tile) -> None:
        if _are_many(found, tile) and many_rows.is_copied(wide, self.down, self.features):
            many_rows.experts_product(wide, self.down, y, found.experts, "")
            return
        grid = found.tiles, triton.cdiv(self.features, tile.columns), 1
        arguments = wide, found.order, found.experts, self.down, y, found.pairs
        constants = {"COLUMNS": tile.columns, **self._constants(tile)}
        NARROW_TILES.launch(grid, arguments, constants, tile.warps, tile.stages)


class FixedExperts(TritonExperts):
    """Adds up in the same order however many pairs there are: each is multiplied in the same tile."""

    most_row_pairs = 0

    def _tile(self, pairs: int, itemsize: int) -> Tile:
        return fitting(FIXED_PAIRS, itemsize, self._chip.shared_bytes)


def experts(linear: LinearKernel, activation: Activation, gate_up: Sequence[Any], down: Sequence[Any]) -> ops.Experts:
    """See `Kernels.experts`; as the reference does it where these kernels do not know how weights are stored."""
    multiplies, kind = getattr(linear, "direct", linear), KINDS.get(activation, "")
    if kind and isinstance(multiplies, Linear):
        return TritonExperts(kind, gate_up, down)
    if kind and isinstance(multiplies, RoundedLinear):
        if chip_of(down[0].levels.device).has_matrix_units:
            return RoundedExperts(kind, len(down), together(gate_up), together(down))
        log.info("experts of few bits run one after the other: Triton does not use the matrix units of this chip")
    return reference.Experts(linear, activation, gate_up, down)


def fixed_experts(
    linear: LinearKernel, activation: Activation, gate_up: Sequence[Any], down: Sequence[Any]
) -> ops.Experts:
    """See `Kernels.experts`.

    Raises:
        UnsupportedKernel: weights are not stored as they are.
    """
    if not isinstance(linear, Linear) or activation not in KINDS:
        raise UnsupportedKernel("--deterministic: experts with quantised weights may depend on the rows beside them")
    return FixedExperts(KINDS[activation], gate_up, down)


def _are_many(found: Sorted, tile: Tile) -> bool:
    """Whether pairs are in tiles that `many_rows` takes."""
    return tile.rows == many_rows.ROWS and found.tiles <= many_rows.MOST_TILES


def row_of(inputs: int) -> dict[str, int]:
    """How much of a weight a program reads at a time."""
    return {"ROWS": 1, "COLUMNS": 1024} if inputs >= LONG_ROW else ROW


def fitting(pairs_of_expert: float, itemsize: int, shared_bytes: int) -> Tile:
    """The fastest tile that fits; else the last one."""
    tiles = next(tiles for limit, tiles in TILES.items() if pairs_of_expert <= limit)
    sizes = [(t.rows + t.columns) * t.inputs * t.stages * itemsize for t in tiles]
    return next((t for t, size in zip(tiles, sizes, strict=True) if size <= SHARE * shared_bytes), tiles[-1])
