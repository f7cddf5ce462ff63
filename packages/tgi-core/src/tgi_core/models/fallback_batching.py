"""How sequences may decode together on a cache of transformers', which is found by trying when the model is loaded.

Some models read positions off the padding, and some mix up the sequences of a batch; neither is written anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from tgi_core.models.cached_decoder import CachedDecoder

#: which sequences may decode in one batch: of any lengths, padded on the left; of equal lengths; or each alone
Batching = Literal["padded", "equal", "single"]

TRIALS: dict[Batching, tuple[int, ...]] = {"padded": (5, 19, 11, 11), "equal": (6, 6, 6, 6)}  #: lengths of sequences
STAYING = [0, 2]  #: rows of a trial that are left after half its steps
STEPS = 4
TOLERANCE = {torch.float32: 1e-3}  #: of logits, as a part of the largest
TOLERANCE_OF_HALVES = 5e-2

log = logging.getLogger(__name__)


@torch.inference_mode()
def find_batching(decoder: CachedDecoder, vocab_size: int, dtype: torch.dtype) -> Batching:
    """The loosest way of batching in which the model says of each sequence what it says of it alone."""
    tolerance = TOLERANCE.get(dtype, TOLERANCE_OF_HALVES)
    generator = torch.Generator().manual_seed(0)
    for batching, lengths in TRIALS.items():
        texts = [torch.randint(vocab_size, (length + STEPS,), generator=generator) for length in lengths]
        error = _error(decoder, texts, lengths)
        log.debug("batching %s changes logits by %.2g", batching, error)
        if error < tolerance:
            return batching
    return "single"


def _error(decoder: CachedDecoder, texts: Sequence[Tensor], lengths: Sequence[int]) -> float:
    """By how much company changes the logits of a sequence, as a part of the largest; infinite if it cannot be."""
    alone = [_said(decoder, [text], [length]) for text, length in zip(texts, lengths, strict=True)]
    try:
        together = _said(decoder, texts, lengths)
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


def _said(decoder: CachedDecoder, texts: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """The logits [B, V] of each step that reads the texts on after so many tokens; half-way some sequences leave."""
    prompts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    groups = [torch.stack(list(group)) for _, group in groupby(prompts, key=len)]
    batch = decoder.join([decoder.prefill(group, all_logits=False)[1] for group in groups])
    rows = list(range(len(texts)))
    said = []
    for step in range(STEPS):
        if step == STEPS // 2 and len(rows) > 1:
            rows = STAYING
            batch = decoder.select(batch, rows)
        tokens = torch.stack([texts[row][lengths[row] + step] for row in rows])
        said.append(decoder.decode(tokens, batch).float())
    return said
