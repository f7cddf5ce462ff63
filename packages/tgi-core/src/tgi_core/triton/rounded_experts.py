"""Experts whose weights have 4 or 8 bits: few pairs read them as they are, many multiply them in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from tgi_core.triton import rounded_expert_rows, rounded_expert_tiles
from tgi_core.triton.launch import Kernel
from tgi_core.triton.rounded import ROW_BYTES, ROW_OUTPUTS, STEP, Rounded
from tgi_core.triton.sorted_experts import Sorted, SortedExperts, Tile
from tgi_core.triton.tiles import SHARE

#: pairs of an expert, on average, up to which these serve: the first that fits, the last does everywhere; not measured
SMALL = Tile(16, 64, STEP, 4, 2)
MEDIUM = tuple(Tile(64, 64, STEP, 4, stages) for stages in (3, 2, 1))
TILES = {
    16: (SMALL._replace(stages=3), SMALL),
    32: (Tile(32, 64, STEP, 4, 3), Tile(32, 64, STEP, 4, 2)),
    128: MEDIUM,
    1 << 62: (Tile(64, 128, STEP, 8, 3), Tile(64, 128, STEP, 8, 2), *MEDIUM),
}
MOST_BLOCKS = 4  #: of levels in a step: of more and smaller ones, AMD's registers do not hold what is on its way

WIDEN_ROWS, NARROW_ROWS = Kernel(rounded_expert_rows.widen_rows), Kernel(rounded_expert_rows.narrow_rows)
WIDEN_TILES, NARROW_TILES = Kernel(rounded_expert_tiles.widen_tiles), Kernel(rounded_expert_tiles.narrow_tiles)


class RoundedExperts(SortedExperts):
    """Keeps the weights of all E experts as they came.

    Args:
        kind: of activation, see `activation.KINDS`.
        count: E.
        gate_up: what `together` makes of them, [E 2 M, N].
        down: the same, [E N, M].
    """

    def __init__(self, kind: str, count: int, gate_up: Rounded, down: Rounded) -> None:
        super().__init__(count, gate_up.inputs, down.inputs, down.levels.device)
        self.kind, self.gate_up, self.down = kind, gate_up, down
        self._shape = {"FEATURES": self.features, "SIZE": self.size}

    def _widen_rows(self, x: Tensor, chosen: Tensor, wide: Tensor) -> None:
        grid = len(wide), triton.cdiv(self.size, ROW_OUTPUTS // 2), 1
        constants = {"K": chosen.shape[1], "KIND": self.kind, **self._shape, **constants_of_rows(self.gate_up)}
        WIDEN_ROWS.launch(grid, (x, chosen, *self.gate_up.tensors, wide), constants)

    def _narrow_rows(self, wide: Tensor, chosen: Tensor, weights: Tensor, out: Tensor) -> None:
        grid = len(out), triton.cdiv(self.features, ROW_OUTPUTS), 1
        constants = {"K": chosen.shape[1], **self._shape, **constants_of_rows(self.down)}
        NARROW_ROWS.launch(grid, (wide, chosen, weights, *self.down.tensors, out), constants)

    def _tile(self, pairs: int, itemsize: int) -> Tile:
        return fitting(pairs / self.count, self._chip.shared_bytes)

    def _widen_tiles(self, x: Tensor, each: int, found: Sorted, wide: Tensor, tile: Tile) -> None:
        grid = found.tiles, triton.cdiv(self.size, tile.columns // 2), 1
        arguments = x, found.order, found.experts, *self.gate_up.tensors, wide, found.pairs
        constants = {"K": each, "KIND": self.kind, **self._constants(self.gate_up, tile)}
        WIDEN_TILES.launch(grid, arguments, constants, tile.warps, tile.stages)

    def _narrow_tiles(self, wide: Tensor, found: Sorted, y: Tensor, tile: Tile) -> None:
        grid = found.tiles, triton.cdiv(self.features, tile.columns), 1
        arguments = wide, found.order, found.experts, *self.down.tensors, y, found.pairs
        NARROW_TILES.launch(grid, arguments, self._constants(self.down, tile), tile.warps, tile.stages)

    def _constants(self, weight: Rounded, tile: Tile) -> dict[str, Any]:
        return {**self._shape, **constants_of_tiles(weight, tile), "UPCAST": self._chip.interprets}


def together(parts: Sequence[Rounded]) -> Rounded:
    """The weights [M, N] of E experts as one [E M, N], each's outputs behind those of the one before it."""
    block, halves = min(part.block for part in parts), all(part.halves for part in parts)
    parts = [_relaid(part, block, halves) for part in parts]
    first, order = parts[0], None
    if any(part.order is not None for part in parts):
        in_order = torch.arange(first.inputs, dtype=torch.int32, device=first.levels.device)
        orders = [in_order if part.order is None else part.order for part in parts]
        order = torch.stack(_of_one_length(orders, -1))

    def joined(name: str) -> Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(_of_one_length(tensors), 1)

    return first._replace(
        outputs=len(parts) * first.outputs,
        levels=torch.cat(_of_one_length([part.levels for part in parts]), 1),
        first=joined("first"),
        second=joined("second"),
        scales=None if first.scales is None else torch.cat([part.scales for part in parts if part.scales is not None]),
        order=order,
    )


def _relaid(part: Rounded, block: int, halves: bool) -> Rounded:
    """The same weight in shorter runs, or one to a byte where two were."""
    if (part.block, part.halves) == (block, halves):
        return part
    runs, shorter = part.levels, part.block // block
    if part.halves:
        runs = torch.stack((runs & 15, runs >> 4), 1).flatten(0, 1)
    runs = runs.unflatten(2, (shorter, block)).transpose(1, 2).flatten(0, 1)
    levels = (runs[::2] | runs[1::2] << 4 if halves else runs).contiguous()
    first, second = (None if x is None else x.repeat_interleave(shorter, 0) for x in (part.first, part.second))
    return part._replace(levels=levels, halves=halves, first=first, second=second)


def _of_one_length(parts: Sequence[Tensor], value: int = 0) -> list[Tensor]:
    """[L, ..] each -> the same, with a value behind the shorter ones."""
    most = max(map(len, parts))
    return [F.pad(part, (0, 0) * (part.dim() - 1) + (0, most - len(part)), value=value) for part in parts]


def constants_of_rows(weight: Rounded) -> dict[str, Any]:
    """What kernels for a few tokens are compiled for."""
    taken = {"OUTPUTS": ROW_OUTPUTS, "AT_ONCE": ROW_BYTES // weight.block}
    return {**weight.constants, "BLOCKS": len(weight.levels), **taken}


def constants_of_tiles(weight: Rounded, tile: Tile) -> dict[str, Any]:
    """What kernels for many tokens are compiled for."""
    at_once = min(tile.inputs // weight.block, MOST_BLOCKS)
    taken = {"ROWS": tile.rows, "OUTPUTS": tile.columns, "STEPS": len(weight.levels) // at_once, "AT_ONCE": at_once}
    return {**weight.constants, **taken}


def fitting(pairs_of_expert: float, shared_bytes: int) -> Tile:
    """The fastest tile of which levels, and the inputs of two runs in 16 bits, fit; else the last one."""
    tiles = next(tiles for limit, tiles in TILES.items() if pairs_of_expert <= limit)
    sizes = [(t.columns + 2 * 2 * t.rows) * t.inputs * t.stages for t in tiles]
    return next((t for t, size in zip(tiles, sizes, strict=True) if size <= SHARE * shared_bytes), tiles[-1])
