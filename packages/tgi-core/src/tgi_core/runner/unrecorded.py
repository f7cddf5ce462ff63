"""Steps that are called layer by layer, for which kernels are compiled before there are any.

These are prompts of more tokens than are recorded, alone or beside decodes, whose kernels depend on how many there are
and on how long they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from tgi_core.attention.base import StepInput

PROMPTS = ((600, 600), (1100,))  #: tokens of prompts, more of which are faster to read in another way
BEFORE = (0, 4096)  #: tokens of each that were there before
DECODES = (1, 2, 4, 7, 12, 24, 60)
LONGEST = (100, 800, 4100)  #: tokens of the longest of them
FEWEST = 64  #: tokens that sequences may have, below which there is nothing to prepare


def unrecorded_steps(longest: int, block_size: int) -> Iterator[StepInput]:
    """The most different ones, of sequences of at most `longest` tokens, none if that is few; their keys lie in one
    block."""
    if longest < FEWEST:
        return
    half = longest // 2
    for before, prompts in itertools.product(BEFORE, PROMPTS):
        yield _step([min(tokens, half) for tokens in prompts], [min(before, half)] * len(prompts), block_size)
    new = [min(tokens, longest) for tokens in PROMPTS[0]]
    for decodes, keys in itertools.product(DECODES, LONGEST):
        yield _step([1] * decodes + new, [min(keys, longest) - 1] * decodes + [0] * len(new), block_size)


def _step(lengths: list[int], before: list[int], block_size: int) -> StepInput:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lens = np.add(before, lengths).astype(np.int32)
    return StepInput(starts, lens, np.zeros((len(lens), -(-int(lens.max()) // block_size)), dtype=np.int32))
