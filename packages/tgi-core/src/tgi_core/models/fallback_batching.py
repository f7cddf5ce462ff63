"""How sequences may decode together on a cache of transformers', which is found by trying when the model is loaded.

Some models read positions off the padding, and some mix up the sequences of a batch; neither is written anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from tgi_core.models.cached_decoder import CachedBatch, CachedDecoder

#: which sequences may decode in one batch: of any lengths, padded on the left; of equal lengths; or each alone
Batching = Literal["padded", "equal", "single"]

TRIALS: dict[Batching, tuple[int, ...]] = {"padded": (5, 19, 11, 11), "equal": (6, 6, 6, 6)}  #: lengths of sequences
SOURCES = (7, 13, 4, 4)  #: tokens that an encoder reads of each
STAYING = (0, 2)  #: rows that are left after half of a trial's steps
STEPS = 4
TOLERANCE = {torch.float32: 1e-3}  #: of logits, as a part of the largest
TOLERANCE_OF_HALVES = 5e-2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Text:
    """A sequence of a trial, whose tokens are known beforehand."""

    tokens: Tensor  #: [length + STEPS]
    source: Tensor  #: [S]
    length: int  #: tokens that are read at once


@torch.inference_mode()
def find_batching(decoder: CachedDecoder, vocab_size: int, dtype: torch.dtype) -> Batching:
    """The loosest way of batching in which the model says of each sequence what it says of it alone."""
    tolerance = TOLERANCE.get(dtype, TOLERANCE_OF_HALVES)
    generator = torch.Generator().manual_seed(0)

    def random_text(length: int, source: int) -> _Text:
        tokens, read = (torch.randint(vocab_size, (size,), generator=generator) for size in (length + STEPS, source))
        return _Text(tokens, read, length)

    for batching, lengths in TRIALS.items():
        error = _error(decoder, [random_text(*sizes) for sizes in zip(lengths, SOURCES, strict=True)])
        log.debug("batching %s changes logits by %.2g", batching, error)
        if error < tolerance:
            return batching
    return "single"


def _error(decoder: CachedDecoder, texts: Sequence[_Text]) -> float:
    """By how much company changes the logits of a sequence, as a part of the largest; infinite if it cannot be."""
    alone = [_said(decoder, [text]) for text in texts]
    try:
        together = _said(decoder, texts)
    except (RuntimeError, ValueError, IndexError, TypeError):  # shapes that do not fit, in a stranger's code
        log.debug("sequences cannot be batched", exc_info=True)
        return float("inf")
    worst = 0.0
    for step, logits in enumerate(together):
        rows = range(len(texts)) if len(logits) == len(texts) else STAYING
        for found, row in zip(logits, rows, strict=True):
            expected = alone[row][step][0]
            error = (found - expected).abs().max() / expected.abs().max()
            worst = max(worst, float(error.nan_to_num(float("inf"))))
    return worst


def _said(decoder: CachedDecoder, texts: Sequence[_Text]) -> list[Tensor]:
    """The logits [B, V] of each step that reads texts on; half-way some of them leave."""
    groups = groupby(texts, key=lambda text: (text.length, len(text.source)))
    batch = decoder.join([_read(decoder, list(group)) for _, group in groups])
    said = []
    for step in range(STEPS):
        if step == STEPS // 2 and len(texts) > 1:
            texts, batch = [texts[row] for row in STAYING], decoder.select(batch, STAYING)
        tokens = torch.stack([text.tokens[text.length + step] for text in texts])
        said.append(decoder.decode(tokens, batch).float())
    return said


def _read(decoder: CachedDecoder, texts: Sequence[_Text]) -> CachedBatch:
    """Texts of equal lengths."""
    tokens = torch.stack([text.tokens[: text.length] for text in texts])
    sources = torch.stack([text.source for text in texts]) if decoder.has_source else None
    return decoder.prefill(tokens, sources, all_logits=False)[1]
