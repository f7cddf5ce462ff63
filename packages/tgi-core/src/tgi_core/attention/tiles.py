"""Queries cut into tiles, for kernels that take several of a sequence at a time."""

from __future__ import annotations

import numpy as np

from tgi_core.attention.base import Int32Array


def cut_into_tiles(lengths: Int32Array, tokens: int) -> tuple[Int32Array, Int32Array]:
    """lengths [B] of sequences, tokens of a tile -> the sequence of every tile, and its first token there."""
    counts = -(-lengths // tokens)
    sequence = np.repeat(np.arange(len(lengths), dtype=np.int32), counts)
    first_tile = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(sequence)) - first_tile) * tokens
    return sequence, start.astype(np.int32)
