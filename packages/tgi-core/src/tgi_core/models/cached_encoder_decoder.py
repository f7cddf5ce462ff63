"""Calls an encoder-decoder of transformers' for batches of sequences that join and leave, each with its cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from inspect import Signature
from typing import Any

import torch
from torch import Tensor, nn

from tgi_core.models.cached_decoder import CachedBatch, CachedDecoder

#: what embeddings of positions are told, from transformers 5.24 on, and before
PAST_LENGTHS = ("cache_length", "past_key_values_length")


class CachedEncoderDecoder(CachedDecoder):
    """The encoder reads the prompt when a sequence begins; cross-attention's keys and values are in the cache.

    Args:
        model: of the kind that `AutoModelForSeq2SeqLM` makes.
    """

    has_source = True

    def __init__(self, model: Any) -> None:
        self._positions = _Positions(model.get_decoder())
        super().__init__(model)

    def _beginning(self, tokens: Tensor, sources: Tensor | None) -> dict[str, Any]:
        if sources is None:
            raise ValueError("an encoder-decoder needs a source for each sequence")
        self._positions.of_rows = None
        sources = sources.to(self.device)
        mask = torch.ones_like(sources)
        read = self.model.get_encoder()(input_ids=sources, attention_mask=mask, return_dict=True)
        self._output = type(read)
        return {"encoder_outputs": read, "attention_mask": mask, "decoder_input_ids": tokens}

    def _continuation(self, tokens: Tensor, batch: CachedBatch) -> dict[str, Any]:
        self._positions.of_rows = batch.lengths
        nothing = torch.zeros((), dtype=self.model.dtype, device=self.device)  # the cache has what is made of it
        read = nothing.expand(len(tokens), max(batch.sources), self.model.config.hidden_size)
        return {
            "encoder_outputs": self._output(last_hidden_state=read),
            "attention_mask": self._mask(batch.sources, 0),
            "decoder_input_ids": tokens,
            "decoder_attention_mask": self._mask(batch.lengths, 1),
        }


class _Positions:
    """Makes a decoder's embedding of positions count each row of a padded batch for itself.

    Such decoders count all rows from the length of the cache, and their callers cannot say otherwise.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self.of_rows: list[int] | None = None  #: tokens before each row's; None: as the embedding counts by itself
        for module in decoder.modules():
            signature = inspect.signature(module.forward)
            told = next((name for name in PAST_LENGTHS if name in signature.parameters), None)
            if told and "Embedding" in type(module).__name__:
                module.forward = partial(self._embedded, module.forward, signature, told)

    def _embedded(
        self, embed: Callable[..., Tensor], signature: Signature, told: str, *given: Any, **named: Any
    ) -> Tensor:
        """The embeddings [B, 1, N] of one token a row, asked for by its own position."""
        if self.of_rows is None or len(set(self.of_rows)) == 1:
            return embed(*given, **named)
        arguments = signature.bind(*given, **named).arguments
        no_positions = {"position_ids": None} if "position_ids" in signature.parameters else {}
        parts: list[Tensor] = []
        order: list[int] = []
        for length in set(self.of_rows):
            rows = [row for row, other in enumerate(self.of_rows) if other == length]
            own = {name: _of_rows(value, rows, len(self.of_rows)) for name, value in arguments.items()}
            part = embed(**{**own, told: length, **no_positions})
            parts.append(part.reshape(-1, 1, part.shape[-1]).expand(len(rows), -1, -1))
            order += rows
        embedded = torch.cat(parts)
        return embedded[torch.tensor(order, device=embedded.device).argsort()]


def _of_rows(value: Any, rows: list[int], count: int) -> Any:
    """What of an argument for `count` rows, or of its shape, belongs to some rows."""
    if isinstance(value, Tensor) and value.dim() and len(value) == count:
        return value[rows]
    if isinstance(value, tuple) and value and value[0] == count:
        return type(value)((len(rows), *value[1:]))
    return value
