"""Calls a decoder of transformers' for batches of sequences that join and leave, each with its cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgi_core.errors import UnsupportedModel
from tgi_core.models.cache_layout import CacheLayout

#: of outputs and arguments; the first is transformers' own from 5.24 on, which takes the others for old ways to say it
CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state", "mems")


def cache_of(output: Any) -> Any:
    """What a model of transformers' returned to be continued with; None if nothing."""
    return next((output[name] for name in CACHE_NAMES if output.get(name) is not None), None)


@dataclass
class CachedBatch:
    """Sequences that decode together, and their cache."""

    cache: Any
    lengths: list[int]  #: tokens of each in the cache
    sources: list[int]  #: tokens that the encoder read of each; 0 where there is no encoder

    @property
    def length(self) -> int:
        """Tokens that every sequence counts as, padding included."""
        return max(self.lengths)


class CachedDecoder:
    """A decoder of transformers', given the arguments that it knows.

    Args:
        model: of the kind that `AutoModelForCausalLM` makes.

    Raises:
        UnsupportedModel: it keeps no cache, or one that cannot be understood.
    """

    has_source = False  #: whether an encoder reads the prompt

    def __init__(self, model: Any) -> None:
        self.model = model
        self._arguments = frozenset(inspect.signature(model.forward).parameters)
        self.device = next(model.parameters()).device
        self.layout = CacheLayout(self._example, has_source=self.has_source)

    def prefill(self, tokens: Tensor, sources: Tensor | None = None, *, all_logits: bool) -> tuple[Tensor, CachedBatch]:
        """Read whole sequences.

        Args:
            tokens: [B, L]
            sources: [B, S], what an encoder reads.
            all_logits: whether those of every token are wanted, not of the last one only.

        Returns:
            logits [B, L, V] or [B, 1, V], and what continues these sequences.
        """
        tokens = tokens.to(self.device)
        count, length = tokens.shape
        logits, cache = self._call(None, **self._beginning(tokens, sources), logits_to_keep=0 if all_logits else 1)
        read = 0 if sources is None else sources.shape[1]
        return logits if all_logits else logits[:, -1:], CachedBatch(cache, [length] * count, [read] * count)

    def decode(self, tokens: Tensor, batch: CachedBatch) -> Tensor:
        """tokens [B] -> logits [B, V]; the batch holds these tokens too afterwards."""
        logits, batch.cache = self._call(batch.cache, **self._continuation(tokens.to(self.device)[:, None], batch))
        batch.lengths = [length + 1 for length in batch.lengths]
        return logits[:, -1]

    def join(self, batches: Sequence[CachedBatch]) -> CachedBatch:
        """The sequences of all batches, in order; the batches are used up."""
        return CachedBatch(
            self.layout.join([batch.cache for batch in batches]),
            [length for batch in batches for length in batch.lengths],
            [source for batch in batches for source in batch.sources],
        )

    def select(self, batch: CachedBatch, rows: Sequence[int]) -> CachedBatch:
        """The sequences in these rows only; the batch is used up."""
        lengths, sources = [batch.lengths[row] for row in rows], [batch.sources[row] for row in rows]
        return CachedBatch(self.layout.select(batch.cache, rows, max(lengths), max(sources)), lengths, sources)

    def _beginning(self, tokens: Tensor, sources: Tensor | None) -> dict[str, Any]:
        """Arguments to read tokens [B, L] with no cache."""
        positions = torch.arange(tokens.shape[1], device=self.device).expand(len(tokens), -1)
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "position_ids": positions,
            "cache_position": positions[0],
        }

    def _continuation(self, tokens: Tensor, batch: CachedBatch) -> dict[str, Any]:
        """Arguments to read tokens [B, 1] after what is in a cache."""
        return {
            "input_ids": tokens,
            "attention_mask": self._mask(batch.lengths, 1) if self.layout.token_bytes else None,
            "position_ids": torch.tensor(batch.lengths, device=self.device)[:, None],
            "cache_position": torch.tensor([batch.length], device=self.device),
        }

    def _mask(self, lengths: Sequence[int], coming: int) -> Tensor:
        """1 for each token there is and each that comes, 0 for padding before them: [B, L] int64"""
        longest = max(lengths)
        first = longest - torch.tensor(lengths, device=self.device)[:, None]
        return (torch.arange(longest + coming, device=self.device) >= first).long()

    def _call(self, cache: Any, **arguments: Any) -> tuple[Tensor, Any]:
        given = {name: value for name, value in arguments.items() if name in self._arguments and value is not None}
        if cache is not None:
            given[next(name for name in CACHE_NAMES if name in self._arguments)] = cache
        output = self.model(**given, use_cache=True, return_dict=True)
        found = cache_of(output)
        if found is None:
            raise UnsupportedModel(f"{type(self.model).__name__} keeps no cache")
        return output.logits, found

    @torch.inference_mode()
    def _example(self, count: int, length: int, source: int) -> Any:
        tokens, sources = (torch.ones(count, size, dtype=torch.int64) for size in (length, source))
        return self.prefill(tokens, sources if self.has_source else None, all_logits=False)[1].cache
