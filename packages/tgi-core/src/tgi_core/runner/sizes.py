"""The sizes of steps that are recorded, and which come first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tgi_core.attention.base import AttentionBackend
from tgi_core.device.capabilities import Capabilities

SHORTEST = 64  #: tokens of the shortest sequences
FEW_ROWS = 16  #: of the first sizes, at most
FEW_TOKENS = 2048  #: of the first sizes' longest sequence, at most


class Size(NamedTuple):
    """Which recording serves a step."""

    rows: int
    tokens: int | None  #: of a mixture, or of sources where there are some; decodes have one in each row
    variant: int  #: see `AttentionBackend.variant`
    chooses: bool  #: greedily, or logits are left to a sampler


class Sizes:
    """Of one engine.

    Args:
        slots: sequences at a time, at most.
        longest: tokens of a sequence, at most.
        sources: they begin with sources, in place of mixtures.
    """

    def __init__(
        self,
        attention: AttentionBackend,
        capabilities: Capabilities,
        slots: int,
        longest: int,
        *,
        sources: bool = False,
    ) -> None:
        self.attention, self.capabilities, self.sources = attention, capabilities, sources
        self.decodes = [(rows, None) for rows in capabilities.batch_buckets if rows <= slots]
        self.lengths = [min(SHORTEST << doubled, longest) for doubled in range((longest // SHORTEST).bit_length() + 1)]

    def of(self, rows: int, tokens: int | None, longest: int, *, chooses: bool) -> Size:
        """Of a step whose longest sequence has so many tokens."""
        variant = self.attention.variant if tokens is None else self.attention.mixture_variant
        return Size(rows, tokens, variant(rows, longest), chooses)

    def of_sources(self, rows: int, tokens: int) -> Size:
        """Of sources, which an encoder reads before the step of their decoder."""
        return Size(rows, tokens, 1, chooses=True)

    def first(self) -> Iterator[Size]:
        """What a new server is asked for first: greedy decodes of few sequences, the smallest one before all others."""
        few = [(rows, None) for rows, _ in self.decodes if rows <= FEW_ROWS]
        return self._all(few, [length for length in self.lengths if length <= FEW_TOKENS], chooses=True)

    def all(self) -> Iterator[Size]:
        """Those of short sequences first, and greedy ones before others."""
        rows_of_mixtures = itertools.pairwise((0, *self.capabilities.mixture_buckets))
        pairs = itertools.product(rows_of_mixtures, self.capabilities.token_buckets)
        both = [(rows, tokens) for (fewer, rows), tokens in pairs if tokens > fewer]  # a row has one at least
        if self.sources:
            yield from itertools.starmap(self.of_sources, both)
        mixtures = () if self.sources else both
        yield from self._all([*self.decodes, *mixtures], self.lengths, chooses=True)
        yield from self._all(self.decodes, self.lengths, chooses=False)

    def _all(self, kinds: Sequence[tuple[int, int | None]], lengths: Sequence[int], *, chooses: bool) -> Iterator[Size]:
        for length, (rows, tokens) in itertools.product(lengths, kinds):
            yield self.of(rows, tokens, length, chooses=chooses)
