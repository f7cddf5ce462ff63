"""Llama, and the families that differ from it in config only: Llama 2, Code Llama, Mistral, Qwen2."""

from __future__ import annotations

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.attention import Attention
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.linear import ColumnLinear, Head, Linear, RowLinear, qkv_parts
from tgi_core.layers.mlp import GatedMLP
from tgi_core.layers.norm import LayerNorm, RMSNorm
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.num_heads, config.num_kv_heads, config.head_size
        self.qkv_proj = self.projection(config, build)
        size, bias = self.heads * self.head_size, _has_bias(config)
        self.o_proj = RowLinear(size, (config.hidden_size,), ("o_proj",), build, bias=bias)
        self.attn = Attention(self.spec(config, config.sliding_windows[layer]), build, rotary)

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_size))
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=-2)
        q, k = self.norm_qk(q, k)
        out: Unsummed = self.o_proj(self.attn(q, k, v, context).flatten(-2))
        return out

    def projection(self, config: ModelConfig, build: BuildContext) -> Linear:
        """To queries, keys and values, in this order."""
        names, bias = ("q_proj", "k_proj", "v_proj"), _has_qkv_bias(config)
        return ColumnLinear(config.hidden_size, qkv_parts(config), names, build, bias=bias)

    def spec(self, config: ModelConfig, window: int | None) -> AttentionSpec:
        """For families that scale or cap scores."""
        return AttentionSpec(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            scale=self.head_size**-0.5,
            window=window,
        )

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """For families that norm queries and keys before they are rotated."""
        return q, k


def _has_bias(config: ModelConfig) -> bool:
    return bool(config.raw.get("attention_bias", config.raw.get("use_bias", False)))


def _has_qkv_bias(config: ModelConfig) -> bool:
    """Some families have biases here and none in the output projection."""
    return bool(config.raw.get("qkv_bias", config.raw.get("use_qkv_bias", _has_bias(config))))


class LlamaDecoderLayer(nn.Module):
    """Attention and gated feed-forward, each after a norm and added to the residual."""

    attention: type[LlamaAttention] = LlamaAttention
    norm: type[RMSNorm] | type[LayerNorm] = RMSNorm

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.input_layernorm = self.norm(config.hidden_size, config.norm_eps, build)
        self.self_attn = self.attention(layer, config, build, rotary)
        self.post_attention_layernorm = self.norm(config.hidden_size, config.norm_eps, build)
        self.mlp = self.feed_forward(layer, config, build)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        x, residual = self.post_attention_layernorm.add(self.self_attn(x, context), residual)
        return self.mlp(x), residual

    def feed_forward(self, layer: int, config: ModelConfig, build: BuildContext) -> nn.Module:
        return GatedMLP(config, build, bias=bool(config.raw.get("mlp_bias", False)))


class LlamaForCausalLM(CausalLM):
    """Embedding, decoder layers, norm, head."""

    decoder_layer: type[nn.Module] = LlamaDecoderLayer
    final_norm: type[RMSNorm] | type[LayerNorm] = RMSNorm

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        rotary = RotaryEmbedding(config.rotary, build)
        local = RotaryEmbedding(config.local_rotary, build) if config.local_rotary else rotary
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, build)
        self.layers = nn.ModuleList(
            self.decoder_layer(layer, config, build, local if window else rotary)
            for layer, window in enumerate(config.sliding_windows)
        )
        self.norm = self.final_norm(config.hidden_size, config.norm_eps, build)
        head = "embed_tokens" if config.tie_word_embeddings else "lm_head"
        self.lm_head = Head(config.hidden_size, config.vocab_size, head, build)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x: Tensor = self.embed_tokens(input_ids)
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, context)
        return self.norm.add(x, residual)[0]
