"""Feed-forward layers of experts; which kernels run depends on the number of tokens only, so steps can be recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tgi_core.errors import UnsupportedKernel
from tgi_core.kernels import ops
from tgi_core.kernels.ops import Activation, LinearKernel
from tgi_core.kernels.reference import moe as reference
from tgi_core.kernels.reference.linear import Linear
from tgi_core.triton import expert_rows, expert_tiles
from tgi_core.triton.activation import KINDS
from tgi_core.triton.chip import Chip
from tgi_core.triton.launch import Kernel
from tgi_core.triton.tiles import SHARE

ROW_PAIRS = 8  #: of a token and an expert, up to which each reads its own weights
LONG_ROW = 2048  #: inputs from which on a program takes one row of a weight
ROW = {"ROWS": 4, "COLUMNS": 512}  #: that a program reads at a time of shorter ones
SORTED = 1024  #: pairs that are looked at together
FIXED_PAIRS = 64  #: whose tile `FixedExperts` takes for any number
MIXED = 1024  #: features of a token that a program sums up


class Tile(NamedTuple):
    """Of a product."""

    rows: int
    columns: int
    inputs: int  #: at a time
    warps: int
    stages: int  #: blocks of inputs on their way


#: pairs of an expert, on average, up to which these serve: the fastest first, the last one fits everywhere
SMALLEST = Tile(16, 32, 32, 4, 2)
TILES = {
    16: (Tile(16, 64, 128, 4, 3), Tile(16, 64, 64, 4, 3), SMALLEST),
    64: (Tile(64, 128, 64, 4, 3), Tile(64, 64, 64, 4, 2), SMALLEST),
    1 << 62: (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 2), Tile(64, 64, 64, 4, 2), SMALLEST),
}

WIDEN_ROWS, NARROW_ROWS = Kernel(expert_rows.widen_rows), Kernel(expert_rows.narrow_rows)
SORT, MIX = Kernel(expert_tiles.sort_pairs), Kernel(expert_tiles.mix)
WIDEN_TILES, NARROW_TILES = Kernel(expert_tiles.widen_tiles), Kernel(expert_tiles.narrow_tiles)


class TritonExperts:
    """Keeps the weights of all experts as gate_up [E, 2 M, N] and down [E, N, M]."""

    waits_for_device = False
    most_row_pairs = ROW_PAIRS  #: see there

    def __init__(self, kind: str, gate_up: Sequence[Tensor], down: Sequence[Tensor]) -> None:
        self.kind, self.gate_up, self.down = kind, torch.stack(tuple(gate_up)), torch.stack(tuple(down))
        self.count, self.features, self.size = self.down.shape
        self._chip = Chip(self.down.device)

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        x, chosen, weights = x.contiguous(), chosen.contiguous(), weights.contiguous()
        out = torch.empty_like(x)
        if chosen.numel() <= self.most_row_pairs:
            self._by_rows(x, chosen, weights, out)
        else:
            self._by_tiles(x, chosen, weights, out)
        return out

    def _by_rows(self, x: Tensor, chosen: Tensor, weights: Tensor, out: Tensor) -> None:
        tokens, each = chosen.shape
        if not tokens:
            return
        shape = {"K": each, "M": self.size, "N": self.features}
        wide = torch.empty((chosen.numel(), self.size), dtype=x.dtype, device=x.device)
        row = row_of(self.features)
        grid = chosen.numel(), triton.cdiv(self.size, row["ROWS"]), 1
        WIDEN_ROWS.launch(grid, (x, chosen, self.gate_up, wide), {**shape, "KIND": self.kind, **row})
        row = row_of(self.size)
        grid = tokens, triton.cdiv(self.features, row["ROWS"]), 1
        NARROW_ROWS.launch(grid, (wide, chosen, weights, self.down, out), {**shape, **row})

    def _tile(self, pairs: int, itemsize: int) -> Tile:
        return fitting(pairs / self.count, itemsize, self._chip.shared_bytes)

    def _by_tiles(self, x: Tensor, chosen: Tensor, weights: Tensor, out: Tensor) -> None:
        tokens, each = chosen.shape
        pairs, device = chosen.numel(), x.device
        if not pairs:
            return
        tile = self._tile(pairs, x.element_size())
        most = most_tiles(pairs, self.count, tile.rows)
        sorting = constants_of_sort(pairs, self.count, most, tile.rows)
        order = torch.empty(most * tile.rows, dtype=torch.int32, device=device)
        experts = torch.empty(sorting["TILES"], dtype=torch.int32, device=device)
        SORT.launch((self.count, 1, 1), (chosen, order, experts, pairs), sorting)
        wide = torch.empty((most * tile.rows, self.size), dtype=x.dtype, device=device)
        shape = {"M": self.size, "N": self.features}
        how = {"ROWS": tile.rows, "INPUTS": tile.inputs, "UPCAST": self._chip.interprets}
        columns = tile.columns // 2  # of gate, and as many of up
        WIDEN_TILES.launch(
            (most, triton.cdiv(self.size, columns), 1),
            (x, order, experts, self.gate_up, wide, pairs),
            {"K": each, **shape, "KIND": self.kind, "COLUMNS": columns, **how},
            tile.warps,
            tile.stages,
        )
        y = torch.empty((pairs, self.features), dtype=x.dtype, device=device)
        NARROW_TILES.launch(
            (most, triton.cdiv(self.features, tile.columns), 1),
            (wide, order, experts, self.down, y, pairs),
            {**shape, "COLUMNS": tile.columns, **how},
            tile.warps,
            tile.stages,
        )
        grid = tokens, triton.cdiv(self.features, MIXED), 1
        MIX.launch(grid, (y, weights, out), {"K": each, "N": self.features, "BLOCK": MIXED})


class FixedExperts(TritonExperts):
    """Adds up in the same order however many pairs there are: each is multiplied in the same tile."""

    most_row_pairs = 0

    def _tile(self, pairs: int, itemsize: int) -> Tile:
        return fitting(FIXED_PAIRS, itemsize, self._chip.shared_bytes)


def experts(linear: LinearKernel, activation: Activation, gate_up: Sequence[Any], down: Sequence[Any]) -> ops.Experts:
    """See `Kernels.experts`; as the reference does it where weights are not stored as they are."""
    if not isinstance(linear, Linear) or activation not in KINDS:
        return reference.Experts(linear, activation, gate_up, down)
    return TritonExperts(KINDS[activation], gate_up, down)


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


def row_of(inputs: int) -> dict[str, int]:
    """How much of a weight a program reads at a time."""
    return {"ROWS": 1, "COLUMNS": 1024} if inputs >= LONG_ROW else ROW


def fitting(pairs_of_expert: float, itemsize: int, shared_bytes: int) -> Tile:
    """The fastest tile that fits; else the last one."""
    tiles = next(tiles for limit, tiles in TILES.items() if pairs_of_expert <= limit)
    sizes = [(t.rows + t.columns) * t.inputs * t.stages * itemsize for t in tiles]
    return next((t for t, size in zip(tiles, sizes, strict=True) if size <= SHARE * shared_bytes), tiles[-1])


def most_tiles(pairs: int, experts: int, rows: int) -> int:
    """How many tiles pairs can make, whatever expert each has."""
    return min(pairs, pairs // rows + min(experts, pairs))


def constants_of_sort(pairs: int, experts: int, tiles: int, rows: int) -> dict[str, int]:
    """Few different ones, so that it is compiled rarely."""
    return {
        "E": experts,
        "BINS": max(64, triton.next_power_of_2(experts + 1)),
        "TILES": triton.next_power_of_2(tiles),
        "ROWS": rows,
        "BLOCKS": triton.next_power_of_2(triton.cdiv(pairs, SORTED)),
        "BLOCK": SORTED,
    }
