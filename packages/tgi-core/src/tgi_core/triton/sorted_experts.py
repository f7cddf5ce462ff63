"""What experts in Triton share, however weights are stored: pairs are few and read rows, or are sorted into tiles.

Letters: see `expert_tiles`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from tgi_core.triton import expert_tiles
from tgi_core.triton.chip import chip_of
from tgi_core.triton.launch import Kernel

ROW_PAIRS = 8  #: of a token and an expert, up to which each reads its own weights
SORTED = 1024  #: pairs that are looked at together
MIXED = 1024  #: features of a token that a program sums up

SORT, MIX = Kernel(expert_tiles.sort_pairs), Kernel(expert_tiles.mix)


class Tile(NamedTuple):
    """Of a product."""

    rows: int
    columns: int
    inputs: int  #: at a time
    warps: int
    stages: int  #: blocks of inputs on their way


class Sorted(NamedTuple):
    """Pairs by expert, in tiles."""

    pairs: int
    tiles: int  #: at most, with those that are empty
    order: Tensor  #: [S ROWS] int32, the pair in each row
    places: Tensor  #: [P] int32, the row of each pair
    experts: Tensor  #: [S] int32, of each tile


class SortedExperts(ABC):
    """Which kernels run depends on the number of tokens only, so steps can be recorded.

    Args:
        count: of experts.
        features: of a token.
        size: of an expert's inner layer.
    """

    waits_for_device = False
    most_row_pairs = ROW_PAIRS  #: see there

    def __init__(self, count: int, features: int, size: int, device: torch.device) -> None:
        self.count, self.features, self.size = count, features, size
        self._chip = chip_of(device)

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        x, chosen, weights = x.contiguous(), chosen.contiguous(), weights.contiguous()
        out = torch.empty_like(x)
        if not chosen.numel():
            return out
        if chosen.numel() <= self.most_row_pairs:
            wide = torch.empty((chosen.numel(), self.size), dtype=x.dtype, device=x.device)
            self._widen_rows(x, chosen, wide)
            self._narrow_rows(wide, chosen, weights, out)
        else:
            self._by_tiles(x, chosen, weights, out)
        return out

    def _by_tiles(self, x: Tensor, chosen: Tensor, weights: Tensor, out: Tensor) -> None:
        tokens, each = chosen.shape
        tile = self._tile(chosen.numel(), x.element_size())
        found = self._sort(chosen, tile.rows)
        wide = torch.empty((found.tiles * tile.rows, self.size), dtype=x.dtype, device=x.device)
        self._widen_tiles(x, each, found, wide, tile)
        y = torch.empty((len(wide), self.features), dtype=x.dtype, device=x.device)
        self._narrow_tiles(wide, found, y, tile)
        grid = tokens, triton.cdiv(self.features, MIXED), 1
        MIX.launch(grid, (y, found.places, weights, out), {"K": each, "N": self.features, "BLOCK": MIXED})

    def _sort(self, chosen: Tensor, rows: int) -> Sorted:
        pairs = chosen.numel()
        most = most_tiles(pairs, self.count, rows)
        sorting = constants_of_sort(pairs, self.count, most, rows)
        order = torch.empty(most * rows, dtype=torch.int32, device=chosen.device)
        places = torch.empty(pairs, dtype=torch.int32, device=chosen.device)
        experts = torch.empty(sorting["TILES"], dtype=torch.int32, device=chosen.device)
        SORT.launch((self.count, 1, 1), (chosen, order, places, experts, pairs), sorting)
        return Sorted(pairs, most, order, places, experts)

    @abstractmethod
    def _tile(self, pairs: int, itemsize: int) -> Tile:
        """Of the products of so many pairs."""

    @abstractmethod
    def _widen_rows(self, x: Tensor, chosen: Tensor, wide: Tensor) -> None:
        """x [T, N], chosen [T, K] -> wide [P, M]"""

    @abstractmethod
    def _narrow_rows(self, wide: Tensor, chosen: Tensor, weights: Tensor, out: Tensor) -> None:
        """wide [P, M], chosen and weights [T, K] -> out [T, N]"""

    @abstractmethod
    def _widen_tiles(self, x: Tensor, each: int, found: Sorted, wide: Tensor, tile: Tile) -> None:
        """x [T, N], K = each -> wide [S ROWS, M]"""

    @abstractmethod
    def _narrow_tiles(self, wide: Tensor, found: Sorted, y: Tensor, tile: Tile) -> None:
        """wide [S ROWS, M] -> y [S ROWS, N]"""


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
