"""OLMo 2: Llama with norms after each half, and over all queries and all keys (arXiv 2501.00656)."""

from __future__ import annotations

from torch import Tensor, nn

from tgi_core.attention.base import ForwardContext
from tgi_core.layers.build import BuildContext
from tgi_core.layers.mlp import GatedMLP
from tgi_core.layers.norm import DividedRMSNorm, Float32RMSNorm
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.layers.unsummed import summed
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaAttention, LlamaForCausalLM


class Olmo2Attention(LlamaAttention):
    """One norm over the queries of all heads, one over the keys."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__(layer, config, build, rotary)
        self.q_norm = DividedRMSNorm(self.heads * self.head_size, config.norm_eps, build)
        self.k_norm = DividedRMSNorm(self.kv_heads * self.head_size, config.norm_eps, build, config.kv_copies)

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q.flatten(-2)).view(q.shape), self.k_norm(k.flatten(-2)).view(k.shape)


class Olmo2DecoderLayer(nn.Module):
    """Attention and feed-forward, each before a norm and added to the residual."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.self_attn = Olmo2Attention(layer, config, build, rotary)
        self.post_attention_layernorm = Float32RMSNorm(config.hidden_size, config.norm_eps, build)
        self.mlp = GatedMLP(config, build)
        self.post_feedforward_layernorm = Float32RMSNorm(config.hidden_size, config.norm_eps, build)

    def forward(self, x: Tensor, residual: Tensor | None, context: ForwardContext) -> tuple[Tensor, Tensor]:
        x = x if residual is None else x + residual
        x = x + self.post_attention_layernorm(summed(self.self_attn(x, context)))
        return self.post_feedforward_layernorm(summed(self.mlp(x))), x


class Olmo2ForCausalLM(LlamaForCausalLM):
    """OLMo 2."""

    decoder_layer = Olmo2DecoderLayer
    final_norm = Float32RMSNorm
