"""How much of a problem one program takes, so that it fits into the chip's shared memory."""

from __future__ import annotations

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
#: of decodes with many programs on each multiprocessor; the fewer there are, the more each reads at a time
DECODE = (Tile(16, 32, 1, 2), Tile(16, 32, 2, 2), Tile(16, 16, 4, 1))
FEW_DECODES = (Tile(16, 64, 2, 3), *DECODE[1:])
LONELY_DECODE = (Tile(16, 128, 4, 2), Tile(16, 64, 4, 2), *DECODE[1:])
FEW, LONELY = 6, 2  #: programs on each multiprocessor, up to which decodes count as that, as measured on an H200
#: for queries of every kind of step alike
IN_ORDER = (Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1))
IN_ORDER_NUMBERS = 1 << 13  #: of a tile's queries at most, as a program holds sums of a split beside those of all


class Kinds(NamedTuple):
    """The tiles of attention, in the order in which they are tried."""

    prefill: tuple[Tile, ...]
    gathered: tuple[Tile, ...]
    crowded: tuple[Tile, ...]
    few: tuple[Tile, ...]
    lonely: tuple[Tile, ...]


#: where a warp has 64 lanes, whose shared memory is smaller: as compiled for gfx90a and gfx942 without spills
WIDE_WARPS = (Tile(128, 64, 4, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1))
#: by lanes of a warp.  With 64, a decode that is one warp takes so many registers that hardly another one runs beside
#: it, and more scalar ones than there are (as compiled for gfx90a and gfx942; not measured)
BY_LANES = {
    32: Kinds(PREFILL, GATHERED, DECODE, FEW_DECODES, LONELY_DECODE),
    64: Kinds(WIDE_WARPS, WIDE_WARPS, DECODE[1:], DECODE[1:], LONELY_DECODE),
}

EARLY_BYTES = 256  #: of a lane, see `reads_early`
FLOAT32_ROWS = 32  #: of float32, which no matrix units multiply: more only take longer to compile
WIDE_HEAD_BYTES = 256  #: of a padded head, from which on a decode takes two warps at least


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
    found = tiles[-1]
    for tile in tiles:
        if most_rows and tile.rows > most_rows:
            continue
        elements = (tile.rows + 2 * tile.keys * tile.stages) * padded_head
        elements += tile.rows * tile.keys * tile.stages * biased
        if elements * itemsize <= SHARE * shared_bytes and tile.rows * padded_head <= 1 << 14:
            found = tile
            break
    wide = padded_head * itemsize > WIDE_HEAD_BYTES
    return found._replace(warps=max(2, found.warps)) if wide else found


def reads_early(tile: Tile, padded_head: int, itemsize: int, lanes: int) -> bool:
    """Whether a decode's registers hold its first keys and values, numbers of `itemsize`, until its queries are there;
    with twice as many, programs keep some in memory (as compiled for sm_90)."""
    return 2 * tile.keys * padded_head * itemsize <= EARLY_BYTES * lanes * tile.warps


def fitting_in_order(padded_head: int, itemsize: int, shared_bytes: int, most_rows: int | None = None) -> Tile:
    """`fitting` of IN_ORDER's."""
    most = IN_ORDER_NUMBERS // padded_head
    most_rows = max(FLOAT32_ROWS, min(most, most_rows or most))
    return fitting(IN_ORDER, padded_head, itemsize, shared_bytes, most_rows)
