"""Falcon: RW (ALiBi, multi-head), 7B (multi-query), 40B and 180B (grouped-query, two norms) (arXiv 2311.16867)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.errors import UnsupportedModel
from tgi_core.layers.alibi import alibi_slopes
from tgi_core.layers.attention import Attention
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.linear import ColumnLinear, Head, RowLinear, Rows, qkv_parts, split_fused_heads
from tgi_core.layers.mlp import MLP
from tgi_core.layers.norm import LayerNorm
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM


class FalconAttention(nn.Module):
    """The checkpoint stores the queries of a group beside their key and value; with one group, queries come first."""

    def __init__(self, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding | None) -> None:
        super().__init__()
        self.heads, self.head_size = config.num_heads, config.head_size
        self.kv_heads = config.num_kv_heads
        hidden, bias = config.hidden_size, config.raw.get("bias", False)
        rows: Rows = qkv_parts(config)
        arrange: Callable[[Tensor], Tensor] | None = None
        if not config.raw["multi_query"] or config.raw.get("new_decoder_architecture"):
            if config.kv_copies > 1:
                raise UnsupportedModel("Falcon's groups of heads cannot be divided further; use a smaller --num-shard")
            rows = (self.heads + 2 * self.kv_heads) * self.head_size
            arrange = split_fused_heads(self.kv_heads, self.heads // self.kv_heads)
        self.query_key_value = ColumnLinear(hidden, (rows,), ("query_key_value",), build, bias=bias, arrange=arrange)
        self.dense = RowLinear(self.heads * self.head_size, (hidden,), ("dense",), build, bias=bias)
        scale = self.head_size**-0.5
        slopes: tuple[float, ...] | None = None
        if rotary is None:  # it scales them too
            slopes = tuple(slope * scale for slope in alibi_slopes(self.heads, build.group))
        spec = AttentionSpec(
            heads=self.heads, kv_heads=self.kv_heads, head_size=self.head_size, scale=scale, alibi_slopes=slopes
        )
        self.attn = Attention(spec, build, rotary)

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        qkv = self.query_key_value(x).unflatten(-1, (-1, self.head_size))
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=-2)
        out: Unsummed = self.dense(self.attn(q, k, v, context).flatten(-2))
        return out


class FalconDecoderLayer(nn.Module):
    """Attention and feed-forward side by side, on one norm or one each; in RW one after the other."""

    def __init__(self, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding | None) -> None:
        super().__init__()
        raw, hidden, eps = config.raw, config.hidden_size, config.norm_eps
        is_new = raw.get("new_decoder_architecture", False)
        norms = raw.get("num_ln_in_parallel_attn") or (2 if is_new else 1)
        self.is_parallel = raw.get("parallel_attn", True) or is_new
        has_two = is_new and norms == 2
        self.input_layernorm = LayerNorm(hidden, eps, build, "ln_attn" if has_two else None)
        self.self_attention = FalconAttention(config, build, rotary)
        self.second_norm: LayerNorm | None = None
        if has_two or not self.is_parallel:
            self.second_norm = LayerNorm(hidden, eps, build, "ln_mlp" if has_two else "post_attention_layernorm")
        self.mlp = MLP(config, build, ("dense_h_to_4h", "dense_4h_to_h"), bias=raw.get("bias", False))

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        normed, residual = self.input_layernorm.add(x, residual)
        attended = self.self_attention(normed, context)
        if self.second_norm is None:
            return self.mlp(normed) + attended, residual
        if self.is_parallel:
            return self.mlp(self.second_norm(residual)) + attended, residual
        x, residual = self.second_norm.add(attended, residual)
        return self.mlp(x), residual


class FalconForCausalLM(CausalLM):
    """Embedding, layers, norm, head."""

    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ("transformer.", "")

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        rotary = None if config.raw.get("alibi", False) else RotaryEmbedding(config.rotary, build)
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size, build)
        self.h = nn.ModuleList(FalconDecoderLayer(config, build, rotary) for _ in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps, build)
        head = "word_embeddings" if config.tie_word_embeddings else "lm_head"
        self.lm_head = Head(config.hidden_size, config.vocab_size, head, build)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x: Tensor = self.word_embeddings(input_ids)
        residual = None
        for layer in self.h:
            x, residual = layer(x, residual, context)
        return self.ln_f.add(x, residual)[0]
