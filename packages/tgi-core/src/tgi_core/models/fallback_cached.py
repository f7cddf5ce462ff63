"""Any other model: transformers' own, with a cache of transformers' own, in batches that sequences join and leave.

How its cache is laid out, and whether padding changes what it says, is not assumed of any model but tried out when it
is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tgi_core.device.capabilities import Capabilities
from tgi_core.errors import UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import LanguageModel
from tgi_core.models.cached_decoder import CachedBatch, CachedDecoder
from tgi_core.models.cached_encoder_decoder import CachedEncoderDecoder
from tgi_core.models.fallback_batching import Batching, find_batching
from tgi_core.models.select import CACHED_FALLBACK
from tgi_core.weights.reader import WeightReader

NOTES: dict[Batching, str] = {
    "padded": "it decodes in batches, padded to the longest",
    "equal": "sequences of equal length decode together, as padding changes what the model says",
    "single": "sequences decode one by one, as the model says something else in company",
}
PADDING = 2  #: sequences decode together if none is longer than so many times the shortest,
SHORT = 64  #: or if all are at most so long


class CachedTransformersLM(LanguageModel):
    """What transformers' auto classes make of the model's folder.

    Args:
        reason: why its attention is not replaced.

    Raises:
        UnsupportedModel: it keeps no cache, or one that cannot be understood.
    """

    runner = "tgi_core.runner.transformers_cache:TransformersCacheRunner"

    def __init__(self, config: ModelConfig, build: BuildContext, model: Any, reason: str) -> None:
        super().__init__(config, build)
        self.own = model
        self.decoder = CachedEncoderDecoder(model) if config.is_encoder_decoder else CachedDecoder(model)
        self.batching = find_batching(self.decoder, config.vocab_size, build.dtype)
        layout = self.decoder.layout
        self.sequence_bytes = layout.sequence_bytes
        self.token_bytes = PADDING * max(layout.token_bytes, layout.source_bytes)
        cost = f"a sequence takes {layout.sequence_bytes} bytes and {layout.token_bytes} for each token"
        self.note = f"{reason}; {CACHED_FALLBACK.note}; {NOTES[self.batching]}; {cost}"

    def load_weights(self, reader: WeightReader, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """transformers has loaded them already."""
        progress(1.0)

    def narrow(self, capabilities: Capabilities) -> Capabilities:
        """Whole prompts, apart from decodes.

        Raises:
            UnsupportedModel: on devices that compile for fixed shapes, as its batches grow token by token.
        """
        if capabilities.static_shapes:
            raise UnsupportedModel(
                f"{self.note}: its shapes change with every token, and this device compiles anew for each; "
                "serve it on another device"
            )
        return replace(
            capabilities, chunked_prefill=False, prefix_caching=False, mixed_batches=False, asynchronous=False
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """The decoder gives logits [B, V] at once."""
        return hidden

    def may_decode_together(self, batches: Sequence[CachedBatch]) -> bool:
        """Whether these may be joined into one batch."""
        lengths = [length for batch in batches for length in batch.lengths]
        sources = [source for batch in batches for source in batch.sources]
        if self.batching == "single":
            return len(lengths) == 1
        if not self.decoder.layout.token_bytes:
            return True
        return _are_similar(sources) and (len(set(lengths)) == 1 if self.batching == "equal" else _are_similar(lengths))


def _are_similar(lengths: Sequence[int]) -> bool:
    """Whether little is padding where these are padded to the longest."""
    return max(lengths) <= max(PADDING * min(lengths), SHORT)
