"""How much of a problem one program takes, so that it fits into the chip's shared memory."""

from __future__ import annotations

import math
from typing import NamedTuple

SHARE = 0.9  #: of shared memory that is planned for


class Tile(NamedTuple):
    """Of an attention kernel."""

    rows: int  #: of queries
    keys: int  #: at a time
    warps: int
    stages: int  #: blocks of keys on their way


#: the fastest first, as measured on an H100: of keys that are read in blocks
PREFILL = (Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1))
#: of keys that lie one after the other and that the chip copies by itself, as measured on an H200
COPIED = (Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1))
#: and of such keys that programs read
GATHERED = (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1))
#: of keys in blocks whose queries are few, so that the keys of each tile are divided too, as measured on an H200: two
#: programs share a multiprocessor
FEW = (Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1))
#: for queries of every kind of step alike
IN_ORDER = (Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1))
IN_ORDER_NUMBERS = 1 << 13  #: of a tile's queries at most, as a program holds sums of a split beside those of all


class Decodes(NamedTuple):
    """Tiles of decodes with so many programs: the fewer there are, the more each reads at a time."""

    most: float  #: programs on each multiprocessor
    tiles: tuple[Tile, ...]
    early: bool = False  #: reads its first keys before its queries are there, if they may be read by then


#: as measured on an H200; of rows as many as `rows_of_decodes` says, 16 at most, which are what is looked at for memory
SOLE = (Tile(16, 256, 8, 1), Tile(16, 128, 8, 1), Tile(16, 64, 4, 2), Tile(16, 32, 2, 2), Tile(16, 16, 4, 1))
CROWDED = (Tile(16, 32, 4, 2), Tile(16, 16, 4, 1))
DECODES = (
    Decodes(1, SOLE, early=True),
    Decodes(2, SOLE[1:], early=True),
    Decodes(6, (Tile(16, 64, 2, 3), *CROWDED)),
    Decodes(math.inf, CROWDED),
)
#: where a warp has 64 lanes: as compiled for gfx90a and gfx942, not measured.  One warp takes so many registers that
#: hardly another one runs beside it, and more scalar ones than there are
WIDE_DECODES = (Decodes(2, (Tile(16, 128, 4, 2), *SOLE[2:])), Decodes(math.inf, SOLE[3:]))


class Alone(NamedTuple):
    """How the keys of a sequence that is alone in its step are split, and the tiles of its decode then."""

    programs: int  #: wanted on each multiprocessor; splits are rounded up to a power of two
    keys: int  #: of a split, at least
    decodes: tuple[Decodes, ...]


#: by the bytes of a key at most; those of 128 (64 numbers of two) and 256 as measured on an H200: small programs leave
#: room for those of the product behind them
ALONE = (
    (128, Alone(4, 128, (Decodes(2, SOLE, early=True), Decodes(math.inf, SOLE[1:], early=True)))),
    (256, Alone(4, 64, (Decodes(math.inf, (Tile(16, 64, 4, 3), *CROWDED), early=True),))),
    (math.inf, Alone(2, 128, DECODES)),
)
WIDE_ALONE = ((math.inf, Alone(2, 128, WIDE_DECODES)),)  #: where a warp has 64 lanes; not measured


class Kinds(NamedTuple):
    """The tiles of attention, in the order in which they are tried."""

    prefill: tuple[Tile, ...]
    few: tuple[Tile, ...]
    gathered: tuple[Tile, ...]
    decodes: tuple[Decodes, ...]
    alone: tuple[tuple[float, Alone], ...]  #: by the bytes of a key at most

    def alone_of(self, key_bytes: int) -> Alone:
        return next(alone for most, alone in self.alone if key_bytes <= most)


#: where a warp has 64 lanes, whose shared memory is smaller: as compiled for gfx90a and gfx942 without spills
WIDE_WARPS = (Tile(128, 64, 4, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1))
#: by lanes of a warp
BY_LANES = {
    32: Kinds(PREFILL, FEW, GATHERED, DECODES, ALONE),
    64: Kinds(WIDE_WARPS, WIDE_WARPS, WIDE_WARPS, WIDE_DECODES, WIDE_ALONE),
}

BIASED_KEYS = 128  #: of decodes at most, where each score gets a bias, as measured on an H200
FLOAT32_ROWS = 32  #: of float32, which no matrix units multiply: more only take longer to compile


def kinds(lanes: int, *, copies: bool) -> Kinds:
    """The tiles of a chip, which may copy keys by itself."""
    found = BY_LANES[lanes]
    return found._replace(gathered=COPIED) if copies else found


def fitting(
    tiles: tuple[Tile, ...],
    padded_head: int,
    itemsize: int,
    shared_bytes: int,
    most_rows: int | None = None,
    *,
    biased: bool = False,
) -> Tile:
    """The first tile whose queries, keys and values fit, and a bias of each score if there is one; else the last."""
    for tile in tiles:
        if (most_rows and tile.rows > most_rows) or (biased and tile.keys > BIASED_KEYS):
            continue
        elements = (tile.rows + 2 * tile.keys * tile.stages) * padded_head
        elements += tile.rows * tile.keys * tile.stages * biased
        if elements * itemsize <= SHARE * shared_bytes and tile.rows * padded_head <= 1 << 14:
            return tile
    return tiles[-1]


def rows_of_decodes(heads: int, lanes: int) -> int:
    """Of a tile in which one query has so many heads; NVIDIA's matrix units take fewer than they multiply at a time."""
    return 16 if lanes == 64 else 1 << (heads - 1).bit_length()


def fitting_in_order(padded_head: int, itemsize: int, shared_bytes: int, most_rows: int | None = None) -> Tile:
    """`fitting` of IN_ORDER's."""
    most = IN_ORDER_NUMBERS // padded_head
    most_rows = max(FLOAT32_ROWS, min(most, most_rows or most))
    return fitting(IN_ORDER, padded_head, itemsize, shared_bytes, most_rows)
