"""Gemma: Llama with scaled embeddings and norms whose weight counts from one (arXiv 2403.08295)."""

from __future__ import annotations

from dataclasses import replace

from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.norm import OneBasedRMSNorm
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaDecoderLayer, LlamaForCausalLM


class GemmaDecoderLayer(LlamaDecoderLayer):
    """A Llama layer with these norms."""

    norm = OneBasedRMSNorm


class GemmaForCausalLM(LlamaForCausalLM):
    """Gemma; its first configs say "gelu" and mean the approximation by tanh."""

    decoder_layer = GemmaDecoderLayer
    final_norm = OneBasedRMSNorm

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        if config.activation == "gelu":
            config = replace(config, activation="gelu_pytorch_tanh")
        super().__init__(config, build)
        scale = config.hidden_size**0.5
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, build, scale=scale)
