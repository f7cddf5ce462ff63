"""Qwen2-MoE (with a shared expert) and Qwen3-MoE (with norms on queries and keys): experts in some layers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from tgi_core.layers.activation import invariant_sigmoid
from tgi_core.layers.build import BuildContext
from tgi_core.layers.linear import Linear
from tgi_core.layers.mlp import GatedMLP
from tgi_core.layers.moe import SparseMoE
from tgi_core.layers.shard import share
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from tgi_core.models.qwen3 import Qwen3Attention


class SharedExpertMoE(SparseMoE):
    """Experts, and one that every token uses, by a share that a gate decides."""

    def __init__(self, config: ModelConfig, build: BuildContext, size: int) -> None:
        super().__init__(config, build, size)
        shared = share(config.raw["shared_expert_intermediate_size"], build.group, "inner features")
        self.shared_expert = GatedMLP(config, build, size=shared)
        self.sigmoid = invariant_sigmoid if build.wishes.deterministic else torch.sigmoid
        self.shared_expert_gate = Linear(config.hidden_size, (1,), ("shared_expert_gate",), build)

    def forward(self, x: Tensor) -> Unsummed:
        shared: Unsummed = self.shared_expert(x) * self.sigmoid(self.shared_expert_gate(x))
        return super().forward(x) + shared


def has_experts(layer: int, config: ModelConfig) -> bool:
    """Whether this layer is no plain feed-forward layer."""
    raw = config.raw
    return layer not in (raw.get("mlp_only_layers") or ()) and (layer + 1) % raw.get("decoder_sparse_step", 1) == 0


class Qwen2MoeDecoderLayer(LlamaDecoderLayer):
    """A Llama layer with experts, or without."""

    experts: ClassVar[type[SparseMoE]] = SharedExpertMoE

    def feed_forward(self, layer: int, config: ModelConfig, build: BuildContext) -> nn.Module:
        if not has_experts(layer, config):
            return GatedMLP(config, build)
        return self.experts(config, build, config.raw["moe_intermediate_size"])


class Qwen2MoeForCausalLM(LlamaForCausalLM):
    """Qwen2-MoE."""

    decoder_layer = Qwen2MoeDecoderLayer


class Qwen3MoeDecoderLayer(Qwen2MoeDecoderLayer):
    """The same with norms on queries and keys, and no expert that every token uses."""

    attention = Qwen3Attention
    experts = SparseMoE


class Qwen3MoeForCausalLM(LlamaForCausalLM):
    """Qwen3-MoE."""

    decoder_layer = Qwen3MoeDecoderLayer
