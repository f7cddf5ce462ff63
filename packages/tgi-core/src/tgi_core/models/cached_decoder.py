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

CACHE_NAMES = ("past_key_values", "cache_params", "state", "mems")  #: of outputs and arguments


@dataclass
class CachedBatch:
    """Sequences that decode together, and their cache."""

    cache: Any
    lengths: list[int]  #: tokens of each in the cache

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

    def __init__(self, model: Any) -> None:
        self.model = model
        self._arguments = frozenset(inspect.signature(model.forward).parameters)
        self.device = next(model.parameters()).device
        self.layout = CacheLayout(self._example)

    def prefill(self, tokens: Tensor, *, all_logits: bool) -> tuple[Tensor, CachedBatch]:
        """tokens [B, L] -> logits [B, L, V], or [B, 1, V] of the last ones; and what continues these sequences."""
        count, length = tokens.shape
        positions = torch.arange(length, device=self.device).expand(count, -1)
        logits, cache = self._call(
            input_ids=tokens.to(self.device),
            attention_mask=torch.ones_like(positions),
            position_ids=positions,
            cache_position=positions[0],
            logits_to_keep=0 if all_logits else 1,
        )
        return logits if all_logits else logits[:, -1:], CachedBatch(cache, [length] * count)

    def decode(self, tokens: Tensor, batch: CachedBatch) -> Tensor:
        """tokens [B] -> logits [B, V]; the batch holds these tokens too afterwards."""
        lengths = torch.tensor(batch.lengths, device=self.device)
        length = batch.length
        logits, batch.cache = self._call(
            batch.cache,
            input_ids=tokens[:, None].to(self.device),
            attention_mask=self._mask(lengths, length + 1) if self.layout.token_bytes else None,
            position_ids=lengths[:, None],
            cache_position=torch.tensor([length], device=self.device),
        )
        batch.lengths = [length + 1 for length in batch.lengths]
        return logits[:, -1]

    def _mask(self, lengths: Tensor, length: int) -> Tensor:
        """1 for each token in the cache and the one that comes, 0 for padding before them: [B, L] int64"""
        return (torch.arange(length, device=self.device) >= (length - 1 - lengths)[:, None]).long()

    def join(self, batches: Sequence[CachedBatch]) -> CachedBatch:
        """The sequences of all batches, in order."""
        cache = self.layout.join([batch.cache for batch in batches])
        return CachedBatch(cache, [length for batch in batches for length in batch.lengths])

    def select(self, batch: CachedBatch, rows: Sequence[int]) -> CachedBatch:
        """The sequences in these rows only."""
        lengths = [batch.lengths[row] for row in rows]
        return CachedBatch(self.layout.select(batch.cache, rows, max(lengths)), lengths)

    def _call(self, cache: Any = None, **arguments: Any) -> tuple[Tensor, Any]:
        given = {name: value for name, value in arguments.items() if name in self._arguments and value is not None}
        if cache is not None:
            given[next(name for name in CACHE_NAMES if name in self._arguments)] = cache
        output = self.model(**given, use_cache=True, return_dict=True)
        found = next((output[name] for name in CACHE_NAMES if output.get(name) is not None), None)
        if found is None:
            raise UnsupportedModel(f"{type(self.model).__name__} keeps no cache")
        return output.logits, found

    @torch.inference_mode()
    def _example(self, count: int, length: int, source: int) -> Any:
        return self.prefill(torch.ones(count, length, dtype=torch.int64), all_logits=False)[1].cache
