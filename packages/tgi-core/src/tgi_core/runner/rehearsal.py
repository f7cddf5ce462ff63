"""Steps that no request asked for: they are taken for the memory that they need, or for the kernels that they want."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, EncoderInput, ForwardContext, SourceInput, StepInput
from tgi_core.device.backend import DeviceBackend
from tgi_core.models.base import LanguageModel
from tgi_core.runner.slots import offsets, positions

FIRST_TOKENS = 16  #: of the prompt with which an engine is tried when it is there

#: tokens of prompts that are not recorded, or not yet, as there are many; a thousand and more are read in another way
PROMPTS = ((600, 600), (1100,))
FEWEST = min(map(sum, PROMPTS))
BEFORE = (0, 4096)  #: tokens of each that were there before
DECODES = (1, 2, 4, 7, 12, 24, 60)  #: sequences with one token beside prompts
LONGEST = (100, 800, 4100)  #: tokens of these


class Bounds(NamedTuple):
    """What steps may be."""

    rows: int
    tokens: int  #: of a step, at most
    recorded: int  #: so many tokens and fewer are recorded soon
    longest: int  #: tokens of a sequence, at most
    block_size: int


def step_of(
    lengths: Sequence[int], before: Sequence[int], block_size: int, source: SourceInput | None = None
) -> StepInput:
    """Sequences with so many new tokens, and so many that were there before; all their keys lie in block 0."""
    lens = np.add(before, lengths).astype(np.int32)
    tables = np.zeros((len(lens), -(-int(lens.max()) // block_size)), dtype=np.int32)
    return StepInput(offsets(np.array(lengths, dtype=np.int32)), lens, tables, source)


def rehearse(
    step: StepInput,
    model: LanguageModel,
    attention: AttentionBackend,
    backend: DeviceBackend,
    encoder: EncoderInput | None = None,
) -> Tensor:
    """Run the model over a step whose tokens are all the same -> logits [B, V], a row for each sequence, whichever."""
    context = ForwardContext(backend.upload(positions(step)), attention.prepare(step), encoder)
    hidden = model(backend.upload(np.zeros(step.num_tokens, dtype=np.int64)), context)
    return model.logits(hidden[: len(step.context_lens)])


def unrecorded_steps(bounds: Bounds) -> Iterator[StepInput]:
    """Of those that are called layer by layer, the ones that differ most in the kernels that they want: of prompts, and
    of decodes beside these, whose kernels depend on how many there are and on how long they are."""
    for new, before in _unrecorded(bounds.longest):
        if len(new) <= bounds.rows and bounds.recorded < sum(new) <= bounds.tokens:
            yield step_of(new, before, bounds.block_size)


def _unrecorded(longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """New tokens, and those before."""
    for most, prompts in itertools.product(BEFORE, PROMPTS):
        new = [min(tokens, longest) for tokens in prompts]
        yield new, [min(most, longest - tokens) for tokens in new]
    new = [min(tokens, longest) for tokens in PROMPTS[0]]
    for decodes, keys in itertools.product(DECODES, LONGEST):
        yield [1] * decodes + new, [min(keys, longest) - 1] * decodes + [0] * len(new)
