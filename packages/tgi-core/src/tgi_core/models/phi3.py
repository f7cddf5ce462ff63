"""Phi-3 and Phi-4: Llama with stacked matrices in the checkpoint (arXiv 2404.14219)."""

from __future__ import annotations

from torch import nn

from tgi_core.layers.build import BuildContext
from tgi_core.layers.linear import ColumnLinear, Linear, qkv_parts
from tgi_core.layers.mlp import GatedMLP
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM


class Phi3Attention(LlamaAttention):
    """Queries, keys and values come from one matrix."""

    def projection(self, config: ModelConfig, build: BuildContext) -> Linear:
        return ColumnLinear(config.hidden_size, (qkv_parts(config),), ("qkv_proj",), build)


class Phi3DecoderLayer(LlamaDecoderLayer):
    """A Llama layer whose gate and up come from one matrix."""

    attention = Phi3Attention

    def feed_forward(self, layer: int, config: ModelConfig, build: BuildContext) -> nn.Module:
        mlp = GatedMLP(config, build)
        gate_up = (config.intermediate_size, config.intermediate_size)
        mlp.gate_up_proj = ColumnLinear(config.hidden_size, (gate_up,), ("gate_up_proj",), build)
        return mlp


class Phi3ForCausalLM(LlamaForCausalLM):
    """Phi-3."""

    decoder_layer = Phi3DecoderLayer
