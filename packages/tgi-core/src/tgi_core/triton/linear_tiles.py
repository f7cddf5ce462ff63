"""How much of a product with few rows one program takes; see `linear`."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

from tgi_core.triton.tiles import SHARE

MANY_OUTPUTS, FEW_OUTPUTS = 8192, 2048  #: at least; below: where other tiles are faster
SHORT_ROW, LONG_ROW = 1024, 2048  #: inputs below and above which they are
MOST_HELD, MOST_HELD_INPUTS = 8, 6144  #: rows, and inputs, that are multiplied with weights that wait in registers


class RowTile(NamedTuple):
    """Of a product with a single row."""

    rows: int  #: of the weight that a program takes
    columns: int  #: of these rows that it reads at a time; the first block before what it is multiplied with
    warps: int


def row_tile(outputs: int, inputs: int) -> RowTile:
    """The fastest of those tried on an H200 in recorded layers of Llama 8B, FLAN-T5-XL and SmolLM2, or near it."""
    if inputs <= SHORT_ROW:
        return RowTile(4, 1024, 4)
    if 2 * FEW_OUTPUTS < outputs < MANY_OUTPUTS:
        return RowTile(8, 1024, 4)
    if inputs <= LONG_ROW:
        return RowTile(2, 1024, 4)
    return RowTile(2, 2048, 4 if outputs <= inputs else 8)


class HeldTile(NamedTuple):
    """Of a product with a few rows whose weights wait in registers."""

    rows: int  #: of the weight that a program takes, as many as matrix units take at least
    #: of these rows that it reads at a time, 256 for each warp, which multiplies what it has read; the first two such
    #: blocks before what they are multiplied with
    columns: int
    warps: int


def held_tile(rows: int, outputs: int, inputs: int) -> HeldTile | None:
    """Where rows and weight are few, as measured on an H200 in recorded layers of FLAN-T5-XL, SmolLM2, and Llamas of
    half a billion and a billion weights with 4 and 8 rows; more inputs where outputs are few were not measured."""
    most = LONG_ROW if outputs >= FEW_OUTPUTS else MOST_HELD_INPUTS
    if rows > MOST_HELD or outputs >= 2 * FEW_OUTPUTS or inputs > most:
        return None
    return HeldTile(16, 1024, 4) if inputs <= SHORT_ROW or outputs >= FEW_OUTPUTS else HeldTile(16, 2048, 8)


def is_held_late(outputs: int, inputs: int, kind: str) -> bool:
    """As `is_late`, of held weights: only with fewer outputs than inputs, as down has, which is best for SmolLM2."""
    return is_late(outputs, inputs, kind) and outputs < min(inputs, FEW_OUTPUTS)


class Tile(NamedTuple):
    """Of a product."""

    outputs: int
    inputs: int  #: at a time
    warps: int
    stages: int  #: blocks of inputs on their way
    splits: int = 1  #: of the inputs, for weights with too few outputs to keep the chip busy


class Fastest(NamedTuple):
    """The tile for some rows and weights."""

    rows: int  #: at most
    outputs: range
    inputs: range
    tile: Tile


ANY = 1 << 31
SMALL, MEDIUM, WIDE = range(FEW_OUTPUTS), range(FEW_OUTPUTS, MANY_OUTPUTS), range(MANY_OUTPUTS, ANY)  #: outputs
SHORT, LONG, LONGER = range(SHORT_ROW), range(SHORT_ROW, LONG_ROW + 1), range(SHORT_ROW, ANY)  #: inputs
FILLING = 0  #: splits: as many as make up for outputs that are not many
#: of those tried on an H100 and an H200 in a recorded step, where weights come from memory; the first one counts
TILES = (
    Fastest(32, SMALL, SHORT, Tile(16, 64, 2, 6)),
    Fastest(256, SMALL, SHORT, Tile(64, 64, 4, 6)),
    Fastest(16, SMALL, LONG, Tile(16, 128, 2, 4, splits=2)),
    Fastest(32, SMALL, LONG, Tile(16, 128, 4, 4)),
    Fastest(256, SMALL, LONG, Tile(64, 128, 4, 4)),
    Fastest(32, MEDIUM, SHORT, Tile(128, 64, 4, 6)),
    Fastest(32, MEDIUM, LONGER, Tile(64, 128, 4, 6, FILLING)),
    Fastest(
        64, range(FEW_OUTPUTS + 1, MANY_OUTPUTS // 2 + 1), range(MANY_OUTPUTS // 2, ANY), Tile(64, 128, 4, 6, FILLING)
    ),
    Fastest(64, WIDE, SHORT, Tile(128, 64, 4, 6)),
    Fastest(64, WIDE, LONGER, Tile(128, 128, 4, 4)),
)


@lru_cache(1 << 12)
def tile_of(rows: int, outputs: int, inputs: int) -> Tile | None:
    """The fastest one; None: PyTorch is."""
    for fastest in TILES:
        if rows <= fastest.rows and outputs in fastest.outputs and inputs in fastest.inputs:
            tile = fastest.tile
            return tile if tile.splits != FILLING else tile._replace(splits=MANY_OUTPUTS // outputs)
    return None


def is_late(outputs: int, inputs: int, kind: str) -> bool:
    """Whether a product, with a `kind` of activation or "", lets the next kernel begin when it has read its weight:
    those behind attention and activations do, which are narrow."""
    return not kind and outputs <= inputs


class FixedTile(NamedTuple):
    """Of all products with a weight, whatever the number of rows."""

    rows: int
    tile: Tile


#: the first that fits into shared memory, for numbers of two bytes
FIXED = (
    FixedTile(64, Tile(128, 64, 4, 4)),
    FixedTile(64, Tile(64, 64, 4, 4)),
    FixedTile(64, Tile(64, 64, 4, 2)),
    FixedTile(32, Tile(32, 32, 4, 2)),
)
FIXED_FLOAT32 = FixedTile(32, Tile(32, 32, 4, 2))  #: no matrix units multiply it: more only take longer to compile
NARROW = FixedTile(64, Tile(16, 64, 4, 4))  #: of weights with few outputs, so that there are programs enough


@cache
def fixed_tile(outputs: int, itemsize: int, shared_bytes: int) -> FixedTile:
    """For a weight, on a chip."""
    if itemsize > 2:
        return FIXED_FLOAT32
    candidates = FIXED if outputs >= MANY_OUTPUTS else FIXED[1:] if outputs >= FEW_OUTPUTS else (NARROW, *FIXED[2:])
    for rows, tile in candidates:
        if (rows + tile.outputs) * tile.inputs * tile.stages * itemsize <= SHARE * shared_bytes:
            return FixedTile(rows, tile)
    return candidates[-1]
