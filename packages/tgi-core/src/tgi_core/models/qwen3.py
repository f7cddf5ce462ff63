"""Qwen3: Llama with a norm on every query and key head."""

from __future__ import annotations

from torch import Tensor

from tgi_core.layers.build import BuildContext
from tgi_core.layers.norm import RMSNorm
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM


class Qwen3Attention(LlamaAttention):
    """Norms over the head, before rotation."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__(layer, config, build, rotary)
        self.q_norm = RMSNorm(self.head_size, config.norm_eps, build)
        self.k_norm = RMSNorm(self.head_size, config.norm_eps, build)

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class Qwen3DecoderLayer(LlamaDecoderLayer):
    """A Llama layer with this attention."""

    attention = Qwen3Attention


class Qwen3ForCausalLM(LlamaForCausalLM):
    """Qwen3."""

    decoder_layer = Qwen3DecoderLayer
