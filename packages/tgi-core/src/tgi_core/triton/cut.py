"""How the queries of a step, and the keys that they see, are divided over programs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tgi_core.attention.base import Int32Array
from tgi_core.attention.tiles import cut_into_tiles

PART = 256  #: keys of a part, at least: to put parts together takes as long as half of them


class Cut(NamedTuple):
    """Tiles of queries, or parts of their keys, which lie one after the other.  Each [N]."""

    sequence: Int32Array
    start: Int32Array  #: first query in its sequence
    part: Int32Array  #: which of its keys' parts
    parts: Int32Array  #: how many these are


def longest_first(lengths: Int32Array, lens: Int32Array, tokens: int) -> tuple[Int32Array, Int32Array]:
    """`cut_into_tiles` of sequences with lens [B] keys; tiles that see most begin first, lest others wait for them."""
    sequence, start = cut_into_tiles(lengths, tokens)
    order = np.argsort(-((lens - lengths)[sequence] + start), kind="stable")
    return sequence[order], start[order]


def cut(lengths: Int32Array, lens: Int32Array, tokens: int, most: int) -> Cut:
    """`longest_first`, with the keys of tiles in parts where there are fewer tiles than `most`; those come first."""
    sequence, start = longest_first(lengths, lens, tokens)
    parts = _parts(np.minimum((lens - lengths)[sequence] + start + tokens, lens[sequence]), most)
    tile = np.repeat(np.arange(len(parts)), parts)
    part = np.arange(len(tile)) - np.repeat(np.cumsum(parts) - parts, parts)
    return Cut(sequence[tile], start[tile], part.astype(np.int32), parts[tile])


def _parts(keys: Int32Array, most: int) -> Int32Array:
    """Of tiles that see so many keys each: as many as give all parts about the same, and at most `most` in all."""
    whole = np.ones_like(keys)
    if not 0 < len(keys) < most:
        return whole
    sizes = np.arange(PART, keys.max() + PART, PART // 2, dtype=np.int32)
    counts = -(-keys // sizes[:, None])
    fits = counts.sum(1) <= most
    return counts[np.argmax(fits)] if fits.any() else whole
