"""Gemma 2 and Gemma 3 (text): a norm on both sides of each half, windows in most layers, capped scores and logits, and
in Gemma 3 norms on queries and keys (arXiv 2408.00118, 2503.19786)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.activation import soft_cap
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.mlp import GatedMLP
from tgi_core.layers.norm import OneBasedRMSNorm
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.layers.unsummed import summed
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaAttention, LlamaForCausalLM


class Gemma2Attention(LlamaAttention):
    """The config scales and caps the scores; Gemma 3 norms each query and key head."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__(layer, config, build, rotary)
        has_norms, size, eps = config.model_type == "gemma3_text", self.head_size, config.norm_eps
        self.q_norm = OneBasedRMSNorm(size, eps, build) if has_norms else nn.Identity()
        self.k_norm = OneBasedRMSNorm(size, eps, build) if has_norms else nn.Identity()

    def spec(self, config: ModelConfig, window: int | None) -> AttentionSpec:
        scale, cap = config.raw["query_pre_attn_scalar"] ** -0.5, config.raw.get("attn_logit_softcapping")
        return replace(super().spec(config, window), scale=scale, soft_cap=cap)

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class Gemma2DecoderLayer(nn.Module):
    """Attention and feed-forward, each between two norms and added to the residual."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.norm_eps
        self.input_layernorm = OneBasedRMSNorm(hidden, eps, build)
        self.self_attn = Gemma2Attention(layer, config, build, rotary)
        self.post_attention_layernorm = OneBasedRMSNorm(hidden, eps, build)
        self.pre_feedforward_layernorm = OneBasedRMSNorm(hidden, eps, build)
        self.mlp = GatedMLP(config, build)
        self.post_feedforward_layernorm = OneBasedRMSNorm(hidden, eps, build)

    def forward(self, x: Tensor, residual: Tensor | None, context: ForwardContext) -> tuple[Tensor, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        x = self.post_attention_layernorm(summed(self.self_attn(x, context)))
        x, residual = self.pre_feedforward_layernorm.add(x, residual)
        return self.post_feedforward_layernorm(summed(self.mlp(x))), residual


class Gemma2ForCausalLM(LlamaForCausalLM):
    """Gemma 2, and Gemma 3 for text."""

    decoder_layer = Gemma2DecoderLayer
    final_norm = OneBasedRMSNorm

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        scale = config.hidden_size**0.5
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, build, scale=scale)
        self.cap: float | None = config.raw.get("final_logit_softcapping")

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        return soft_cap(logits, self.cap) if self.cap else logits
