"""What the runner needs of a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from tgi_core.attention.base import ForwardContext
from tgi_core.device.capabilities import Capabilities
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import tie_embeddings
from tgi_core.model_config import ModelConfig
from tgi_core.stats import Reason
from tgi_core.weights.loader import Checkpoint, load_weights
from tgi_core.weights.reader import WeightReader


class LanguageModel(nn.Module):
    """What an engine needs of any model, however it is run."""

    runner: ClassVar[str] = ""  #: target of the Runner that it needs; "" = the device's own
    sequence_bytes: int = 0  #: of cache that the model keeps itself, for each sequence
    token_bytes: int = 0  #: of cache that the model keeps itself, for each token of a sequence
    note: str = ""  #: what a person should know of how it runs
    reasons: tuple[Reason, ...] = ()  #: of what it chose by itself

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        self.config, self._device, self._copy_weight = config, build.device, build.copy_weight

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [B, N] -> [B, V]"""

    @abstractmethod
    def load_weights(self, reader: WeightReader, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """Fill the model."""

    def allocate(self, slots: int, tokens: int) -> None:
        """Create the cache that the model keeps itself: `tokens` of each sequence."""

    def narrow(self, capabilities: Capabilities) -> Capabilities:
        """What of the device's abilities the model leaves."""
        return capabilities


class CausalLM(LanguageModel):
    """A decoder: token ids of one step -> hidden states -> logits where they are wanted.

    One with an encoder reads `context.encoder` too, where a step has one; see `EncoderDecoderLM`.
    """

    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    lm_head: nn.Module  #: [B, N] -> [B, V]

    @abstractmethod
    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """input_ids [T] -> hidden states [T, N], normalised for `logits`."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [B, N] -> [B, V]"""
        y: Tensor = self.lm_head(hidden)
        return y

    def load_weights(self, reader: WeightReader, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """Fill the model; see `tgi_core.weights.loader.load_weights`."""
        tie_embeddings(self)
        checkpoint = Checkpoint(reader, self.checkpoint_prefixes, self._device, self._copy_weight)
        load_weights(self, checkpoint, progress)


class EncoderDecoderLM(CausalLM):
    """A decoder whose layers attend to what an encoder made of a source, too."""

    @abstractmethod
    def encode(self, context: ForwardContext) -> None:
        """Read the sources that begin, `context.encoder`, and keep what the decoder attends to, for a `forward` whose
        context has none.  Needs an attention backend that `keeps_sources`."""
