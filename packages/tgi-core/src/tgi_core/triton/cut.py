"""How the queries of a step, and the keys that they see, are divided over programs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tgi_core.attention.base import Int32Array
from tgi_core.attention.tiles import cut_into_tiles

PART = 256  #: keys of a part, at least: to put parts together takes as long as half of them
STEP = 128  #: keys, by which the sizes of parts differ


class Cut(NamedTuple):
    """Tiles of queries, or parts of their keys, which lie one after the other.  Each [N]."""

    sequence: Int32Array
    start: Int32Array  #: first query in its sequence
    part: Int32Array  #: which of its keys' parts
    parts: Int32Array  #: how many these are


def cut(lengths: Int32Array, lens: Int32Array, tokens: int, most: int, *, is_causal: bool) -> Cut:
    """Sequences with lengths [B] queries and lens [B] keys, in tiles of so many queries.

    Those that see most keys begin first, lest others wait for them; where there are fewer tiles than `most`, their keys
    are in parts.

    Args:
        is_causal: a query sees the keys up to its own; otherwise all of its sequence.
    """
    sequence, start = cut_into_tiles(lengths, tokens)
    keys = lens[sequence]
    if is_causal:
        keys = np.minimum(keys - lengths[sequence] + start + tokens, keys)
    order = np.argsort(-keys, kind="stable")
    parts = _parts(keys[order], most)
    first = np.cumsum(parts) - parts
    tile = np.repeat(order, parts)
    part = np.arange(len(tile), dtype=np.int32) - np.repeat(first, parts).astype(np.int32)
    return Cut(sequence[tile], start[tile], part, np.repeat(parts, parts))


def _parts(keys: Int32Array, most: int) -> Int32Array:
    """Of tiles that see so many keys each: as many as give all parts about the same, and at most `most` in all."""
    if not 0 < len(keys) < most:
        return np.ones_like(keys)
    fits, too_small = -(-int(keys.max()) // STEP), PART // STEP - 1  # sizes of parts, in steps
    while fits - too_small > 1:
        middle = (fits + too_small) // 2
        fits, too_small = (middle, too_small) if _counts(keys, middle).sum() <= most else (fits, middle)
    return _counts(keys, fits)


def _counts(keys: Int32Array, steps: int) -> Int32Array:
    return np.maximum(-(-keys // (STEP * steps)), 1)
