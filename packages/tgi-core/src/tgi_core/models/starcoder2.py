"""Starcoder2: Llama with layer norms, biases and a plain feed-forward layer (arXiv 2402.19173)."""

from __future__ import annotations

from torch import nn

from tgi_core.layers.build import BuildContext
from tgi_core.layers.mlp import MLP
from tgi_core.layers.norm import LayerNorm
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaDecoderLayer, LlamaForCausalLM


class Starcoder2DecoderLayer(LlamaDecoderLayer):
    """A Llama layer with these halves."""

    norm = LayerNorm

    def feed_forward(self, layer: int, config: ModelConfig, build: BuildContext) -> nn.Module:
        return MLP(config, build, ("c_fc", "c_proj"), bias=config.raw["use_bias"])


class Starcoder2ForCausalLM(LlamaForCausalLM):
    """Starcoder2."""

    decoder_layer = Starcoder2DecoderLayer
    final_norm = LayerNorm
