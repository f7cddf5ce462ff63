"""Linear layers with weights of 4 and 8 bits: few rows read them as they are, many multiply what they expand to."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from tgi_core.kernels.reference import affine
from tgi_core.kernels.reference.linear import GROUP, quantize_groups, quantize_rows
from tgi_core.triton import rounded_tiles
from tgi_core.triton.chip import chip_of
from tgi_core.triton.launch import Kernel
from tgi_core.triton.tiles import SHARE

MOST_ROWS = 128  #: from which on expanding a weight costs less than multiplying it in tiles
BLOCKS = (128, 64, 32, 16)  #: inputs that a run can have, of which the first is taken that groups allow
STEP = 128  #: bytes of an output that a program takes at a time, of one block or several
ROW_OUTPUTS, ROW_BYTES = 4, 512  #: that a program takes of each at a time for a single row
MOST_ROWS_OF_TILE = 64
#: programs for each multiprocessor up to which inputs are divided; more where a step is several small products
PROGRAMS, SMALL_PROGRAMS, MOST_SPLITS = 5, 14, 8
ADDED = 1024  #: numbers of each split that a program adds up
EXPANDED_OUTPUTS = 32  #: of a program

MULTIPLY, MULTIPLY_ROW = Kernel(rounded_tiles.multiply), Kernel(rounded_tiles.multiply_row)
ADD_SPLITS, EXPAND = Kernel(rounded_tiles.add_splits), Kernel(rounded_tiles.expand)


class Tile(NamedTuple):
    """Of a product."""

    rows: int
    outputs: int
    warps: int
    stages: int  #: blocks of levels, and of what they are multiplied with, on their way
    splits: int  #: of the inputs


class Rounded(NamedTuple):
    """A weight [M, N] in the layout of `rounded_tiles`."""

    form: str
    outputs: int
    inputs: int
    levels: Tensor
    halves: bool  #: two runs are in the same bytes
    first: Tensor | None = None
    second: Tensor | None = None
    scales: Tensor | None = None
    order: Tensor | None = None  #: int32 [N], or [E, N] of experts: the input at each place, -1 = none; None = in order

    @property
    def block(self) -> int:
        """Inputs of a run."""
        return self.levels.shape[2]

    @property
    def places(self) -> int:
        """Of inputs, with those that have none."""
        return self.inputs if self.order is None else self.order.shape[-1]

    @property
    def constants(self) -> dict[str, Any]:
        """What kernels are compiled for."""
        shape = {"M": self.outputs, "N": self.places, "BLOCK": self.block}
        return {**shape, "FORM": self.form, "HALVES": self.halves, "HAS_ORDER": self.order is not None}

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """As kernels take them."""
        return self.levels, self.first, self.second, self.scales, self.order

    def expand(self, dtype: torch.dtype) -> Tensor:
        """[M, N]"""
        out = torch.empty((self.outputs, self.inputs), dtype=dtype, device=self.levels.device)
        grid = triton.cdiv(self.places, self.block), triton.cdiv(self.outputs, EXPANDED_OUTPUTS), 1
        constants = {**self.constants, "COLUMNS": self.inputs, "OUTPUTS": EXPANDED_OUTPUTS}
        EXPAND.launch(grid, (*self.tensors, out), constants)
        return out


@cache
def tile_of(rows: int, outputs: int, steps: int, block: int, multiprocessors: int, shared_bytes: int) -> Tile:
    """Of a product of this many rows with a weight of so many outputs, and steps for each; as measured on an H100."""
    taken = min(MOST_ROWS_OF_TILE, max(16, triton.next_power_of_2(rows)))
    short, few = block < STEP, taken < MOST_ROWS_OF_TILE
    at_once, warps = (32, 2) if few and not short else (64, 4)
    programs = triton.cdiv(rows, taken) * triton.cdiv(outputs, at_once)
    wanted = (SMALL_PROGRAMS if few and short else PROGRAMS) * multiprocessors // programs
    splits = max(1, min(wanted, steps // 2, MOST_SPLITS))
    stage_bytes = STEP * at_once + 2 * STEP * taken * 2
    stages = max(1, min(2 if short else 3, int(SHARE * shared_bytes) // stage_bytes))
    return Tile(taken, at_once, warps, stages, 1 << splits.bit_length() - 1)


class RoundedLinear:
    """A product with a weight of a few bits."""

    def __call__(self, x: Tensor, packed: Rounded, bias: Tensor | None) -> Tensor:
        if not 0 < len(x) <= (MOST_ROWS if chip_of(x.device).has_matrix_units else 1):
            return F.linear(x, packed.expand(x.dtype), bias)
        x = x if x.stride(1) == 1 else x.contiguous()
        out = torch.empty((len(x), packed.outputs), dtype=x.dtype, device=x.device)
        if len(x) == 1:
            self._multiply_row(x, packed, bias, out)
        else:
            self._multiply(x, packed, bias, out)
        return out

    def _multiply_row(self, x: Tensor, packed: Rounded, bias: Tensor | None, out: Tensor) -> None:
        constants = {**packed.constants, "HAS_BIAS": bias is not None, "OUTPUTS": ROW_OUTPUTS}
        constants |= {"BLOCKS": len(packed.levels), "AT_ONCE": ROW_BYTES // packed.block}
        grid = triton.cdiv(packed.outputs, ROW_OUTPUTS), 1, 1
        MULTIPLY_ROW.launch(grid, (x, *packed.tensors, bias, out), constants)

    def _multiply(self, x: Tensor, packed: Rounded, bias: Tensor | None, out: Tensor) -> None:
        rows, outputs = out.shape
        steps = len(packed.levels) * packed.block // STEP
        chip = chip_of(x.device)
        tile = tile_of(rows, outputs, steps, packed.block, chip.multiprocessors, chip.shared_bytes)
        constants = {
            **packed.constants,
            "x_row": x.stride(0),
            "ROWS": tile.rows,
            "OUTPUTS": tile.outputs,
            "BLOCKS": len(packed.levels),
            "STEPS": triton.cdiv(steps, tile.splits),
            "AT_ONCE": STEP // packed.block,
            "HAS_BIAS": bias is not None,
            "UPCAST": MULTIPLY.interpreted,
        }
        split = tile.splits > 1
        y = torch.empty((tile.splits, *out.shape), dtype=torch.float32, device=x.device) if split else out
        grid = triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs), tile.splits
        MULTIPLY.launch(grid, (x, *packed.tensors, bias, y, rows), constants, tile.warps, tile.stages)
        if split:
            grid = triton.cdiv(out.numel(), ADDED), 1, 1
            ADD_SPLITS.launch(grid, (y, out, out.numel()), {"SPLITS": tile.splits, "BLOCK": ADDED})


class Int8Linear(RoundedLinear):
    """See `Kernels.linear_int8`."""

    def pack(self, weight: Tensor) -> Rounded:
        rounded, scales = quantize_rows(weight)
        outputs, inputs = weight.shape
        return Rounded("int8", outputs, inputs, _in_runs(rounded, STEP), halves=False, scales=scales)

    def rows(self, packed: Rounded, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See `RowsKernel`."""
        found = packed.levels[:, ids].transpose(0, 1).flatten(1)[:, : packed.inputs]
        assert packed.scales is not None
        return (found * packed.scales[ids].unsqueeze(1)).to(dtype)


class Int4Linear(RoundedLinear):
    """See `Kernels.linear_int4`."""

    def pack(self, weight: Tensor, importance: Tensor | None = None) -> Rounded:
        found = quantize_groups(weight, importance)
        levels = torch.cat((found.levels & 15, found.levels >> 4), -1).flatten(1)
        outputs, inputs = weight.shape
        packed = _in_halves(levels, GROUP)
        steps, offsets = (_of_runs(part, packed) for part in (found.steps, found.offsets))
        return Rounded("int4", outputs, inputs, packed, True, steps, offsets, found.scales)


class AffineLinear(RoundedLinear):
    """See `Kernels.linear_affine`."""

    keeps_levels: ClassVar[bool] = True

    def pack(self, weight: Tensor) -> Rounded:
        meaning = weight & ~255
        block, order = _block(meaning), None
        if block is None:
            sorted_inputs = _by_meaning(meaning)
            block = _block(meaning[:, sorted_inputs])
            order = sorted_inputs if block else _with_gaps(meaning, sorted_inputs, BLOCKS[-1])
            block = block or BLOCKS[-1]
        found = affine.decode(weight if order is None else weight[:, order.clamp(min=0)])
        halves = int(found.levels.max()) < 16
        packed = _in_halves(found.levels, block) if halves else _in_runs(found.levels, block)
        zeros, scales = (_of_runs(part[:, ::block], packed) for part in (found.zeros, found.scales))
        outputs, inputs = weight.shape
        order = None if order is None else order.int()
        return Rounded("affine", outputs, inputs, packed, halves, zeros, scales, order=order)


def _in_runs(levels: Tensor, block: int, step: int = STEP) -> Tensor:
    """[M, N] -> [R, M, block], with runs enough for whole steps"""
    return F.pad(levels, (0, -levels.shape[1] % step)).unflatten(1, (-1, block)).transpose(0, 1).contiguous()


def _in_halves(levels: Tensor, block: int) -> Tensor:
    """[M, N] of less than 16 -> [R / 2, M, block]"""
    runs = _in_runs(levels, block, 2 * STEP)
    return runs[::2] | runs[1::2] << 4


def _of_runs(groups: Tensor, packed: Tensor) -> Tensor:
    """[M, G] -> [R, M], for all runs in `packed`"""
    return F.pad(groups.T, (0, 0, 0, 2 * len(packed) - groups.shape[1])).contiguous()


def _block(meaning: Tensor) -> int | None:
    """The first of BLOCKS whose inputs have one meaning; None = there is none.  [M, N]"""
    changes = (meaning[:, 1:] != meaning[:, :-1]).any(0).nonzero().flatten() + 1
    return next((block for block in BLOCKS if not (changes % block).any()), None)


def _by_meaning(meaning: Tensor) -> Tensor:
    """An order of inputs in which those of one meaning follow each other.  [M, N] -> [N] int64"""
    generator = torch.Generator("cpu").manual_seed(0)
    mixed = torch.randint(1, 1 << 62, (len(meaning), 1), generator=generator, device="cpu").to(meaning.device)
    return (meaning.long() * mixed).sum(0).argsort(stable=True)


def _with_gaps(meaning: Tensor, order: Tensor, block: int) -> Tensor:
    """An order by meaning, with -1 behind the inputs of each so that the next ones begin at a multiple of block."""
    changes = (meaning[:, order[1:]] != meaning[:, order[:-1]]).any(0)
    group = F.pad(changes.cumsum(0), (1, 0))
    sizes = group.bincount()
    taken = -(-sizes // block) * block
    shift = (taken.cumsum(0) - taken) - (sizes.cumsum(0) - sizes)
    out = torch.full((int(taken.sum()),), -1, device=order.device)
    out[torch.arange(len(order), device=order.device) + shift[group]] = order
    return out


linear_int8, linear_int4, linear_affine = Int8Linear(), Int4Linear(), AffineLinear()
