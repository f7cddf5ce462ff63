"""Granite: Llama with a multiplier on embeddings, scores, residuals and logits (arXiv 2405.04324)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM


class GraniteAttention(LlamaAttention):
    """The config scales the scores."""

    def spec(self, config: ModelConfig, window: int | None) -> AttentionSpec:
        return replace(super().spec(config, window), scale=config.raw.get("attention_multiplier", 1.0))


class GraniteDecoderLayer(LlamaDecoderLayer):
    """Both halves are scaled before they are added to the residual."""

    attention = GraniteAttention

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__(layer, config, build, rotary)
        self.multiplier = config.raw.get("residual_multiplier", 1.0)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        attended = self.self_attn(x, context) * self.multiplier
        x, residual = self.post_attention_layernorm.add(attended, residual)
        return self.mlp(x) * self.multiplier, residual


class GraniteForCausalLM(LlamaForCausalLM):
    """Granite."""

    decoder_layer = GraniteDecoderLayer

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        multiplier = config.raw.get("embedding_multiplier", 1.0)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, build, scale=multiplier)
        self.divisor = config.raw.get("logits_scaling", 1.0)

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) / self.divisor
