"""Mixtral: Llama with experts in place of the feed-forward layer (arXiv 2401.04088)."""

from __future__ import annotations

from torch import nn

from tgi_core.layers.build import BuildContext
from tgi_core.layers.moe import SparseMoE
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaDecoderLayer, LlamaForCausalLM


class MixtralDecoderLayer(LlamaDecoderLayer):
    """A Llama layer with experts."""

    def feed_forward(self, layer: int, config: ModelConfig, build: BuildContext) -> nn.Module:
        return SparseMoE(config, build, config.intermediate_size * build.group.size)


class MixtralForCausalLM(LlamaForCausalLM):
    """Mixtral."""

    decoder_layer = MixtralDecoderLayer
