"""The way of batching is found by trying, on decoders with known faults."""

import pytest
import torch

from tgi_core.models.cached_decoder import CachedBatch
from tgi_core.models.fallback_batching import find_batching

VOCABULARY = 50


class Decoder:
    """Its logits depend on all tokens of a sequence; the cache is the list of them."""

    has_source = False

    def prefill(self, tokens, sources, *, all_logits):
        rows = [row.tolist() for row in tokens]
        batch = CachedBatch(rows, [tokens.shape[1]] * len(tokens), [0] * len(tokens))
        return self.logits(batch.cache)[:, None], batch

    def decode(self, tokens, batch):
        batch.cache = [[*row, token] for row, token in zip(batch.cache, tokens.tolist(), strict=True)]
        batch.lengths = [length + 1 for length in batch.lengths]
        return self.logits(batch.cache)

    def join(self, batches):
        rows = [row for batch in batches for row in batch.cache]
        return CachedBatch(rows, [length for batch in batches for length in batch.lengths], [0] * len(rows))

    def select(self, batch, rows):
        return CachedBatch([batch.cache[row] for row in rows], [batch.lengths[row] for row in rows], [0] * len(rows))

    def logits(self, rows):
        return torch.stack([self.row_logits(row) for row in rows])

    def row_logits(self, row):
        return torch.arange(VOCABULARY).float().mul(1 + sum(row)).sin()


class ReadsPositionsOffPadding(Decoder):
    def logits(self, rows):
        longest = max(map(len, rows))
        return torch.stack([self.row_logits(row) + longest - len(row) for row in rows])


class MixesSequences(Decoder):
    def logits(self, rows):
        return super().logits(rows) + len(rows)


class FailsInCompany(Decoder):
    def logits(self, rows):
        if len(rows) > 1:
            raise RuntimeError("shapes cannot be broadcast")
        return super().logits(rows)


class LosesRowsThatStay(Decoder):
    def select(self, batch, rows):
        return super().select(batch, [row + 1 for row in rows])


class SaysNothing(Decoder):
    def logits(self, rows):
        return super().logits(rows) * (float("nan") if len(rows) > 1 else 1.0)


@pytest.mark.parametrize(
    ("decoder", "batching"),
    [
        (Decoder, "padded"),
        (ReadsPositionsOffPadding, "equal"),
        (MixesSequences, "single"),
        (FailsInCompany, "single"),
        (LosesRowsThatStay, "single"),
        (SaysNothing, "single"),
    ],
)
def test_the_loosest_way_that_is_harmless(decoder, batching):
    assert find_batching(decoder(), VOCABULARY, torch.float32) == batching
