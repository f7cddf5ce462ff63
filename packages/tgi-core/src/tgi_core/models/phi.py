"""Phi 1, 1.5 and 2: partial rotary, biases everywhere, one norm feeds both halves (arXiv 2309.05463)."""

from __future__ import annotations

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.attention import Attention
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.linear import ColumnLinear, Head, RowLinear, qkv_parts
from tgi_core.layers.mlp import MLP
from tgi_core.layers.norm import LayerNorm
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM


class PhiAttention(nn.Module):
    """Grouped-query attention; queries and keys may be normed by head."""

    def __init__(self, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.num_heads, config.num_kv_heads, config.head_size
        q_size, hidden = self.heads * self.head_size, config.hidden_size
        self.qkv = ColumnLinear(hidden, qkv_parts(config), ("q_proj", "k_proj", "v_proj"), build, bias=True)
        self.dense = RowLinear(q_size, (hidden,), ("dense",), build, bias=True)
        has_norms = config.raw.get("qk_layernorm", False)
        self.q_layernorm = LayerNorm(self.head_size, config.norm_eps, build) if has_norms else nn.Identity()
        self.k_layernorm = LayerNorm(self.head_size, config.norm_eps, build) if has_norms else nn.Identity()
        spec = AttentionSpec(
            heads=self.heads, kv_heads=self.kv_heads, head_size=self.head_size, scale=self.head_size**-0.5
        )
        self.attn = Attention(spec, build, rotary)

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_size))
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=-2)
        attended = self.attn(self.q_layernorm(q), self.k_layernorm(k), v, context)
        out: Unsummed = self.dense(attended.flatten(-2))
        return out


class PhiDecoderLayer(nn.Module):
    """Attention and feed-forward side by side."""

    def __init__(self, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.self_attn = PhiAttention(config, build, rotary)
        self.mlp = MLP(config, build, ("fc1", "fc2"), bias=True)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        return self.self_attn(x, context) + self.mlp(x), residual


class PhiForCausalLM(CausalLM):
    """Embedding, layers, norm, head with a bias."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        rotary = RotaryEmbedding(config.rotary, build)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, build)
        self.layers = nn.ModuleList(PhiDecoderLayer(config, build, rotary) for _ in range(config.num_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.lm_head = Head(config.hidden_size, config.vocab_size, "lm_head", build, bias=True)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x: Tensor = self.embed_tokens(input_ids)
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, context)
        return self.final_layernorm.add(x, residual)[0]
