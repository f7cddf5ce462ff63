"""BLOOM: ALiBi, a norm behind the embedding (arXiv 2211.05100)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.alibi import alibi_slopes
from tgi_core.layers.attention import Attention
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.linear import ColumnLinear, Head, RowLinear, split_fused_heads
from tgi_core.layers.mlp import MLP
from tgi_core.layers.norm import LayerNorm
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM


class BloomAttention(nn.Module):
    """The checkpoint stores query, key and value of each head side by side."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        self.heads, self.head_size, hidden = config.num_heads, config.head_size, config.hidden_size
        size, arrange = self.heads * self.head_size, split_fused_heads(self.heads, 1)
        self.query_key_value = ColumnLinear(
            hidden, (3 * size,), ("query_key_value",), build, bias=True, arrange=arrange
        )
        self.dense = RowLinear(size, (hidden,), ("dense",), build, bias=True)
        spec = AttentionSpec(
            heads=self.heads,
            kv_heads=self.heads,
            head_size=self.head_size,
            scale=self.head_size**-0.5,
            alibi_slopes=alibi_slopes(self.heads, build.group),
        )
        self.attn = Attention(spec, build)

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.heads, self.head_size)).unbind(1)
        out: Unsummed = self.dense(self.attn(q, k, v, context).flatten(-2))
        return out


class BloomBlock(nn.Module):
    """Each half reads a norm; what it is added to is the norm's input, or with a flag its output."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        self.adds_to_norm = config.raw.get("apply_residual_connection_post_layernorm", False)
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.self_attention = BloomAttention(config, build)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.mlp = MLP(config, build, ("dense_h_to_4h", "dense_4h_to_h"), bias=True)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        normed, x = self.input_layernorm.add(x, residual)
        residual = normed if self.adds_to_norm else x
        normed, x = self.post_attention_layernorm.add(self.self_attention(normed, context), residual)
        return self.mlp(normed), normed if self.adds_to_norm else x


class BloomForCausalLM(CausalLM):
    """Embedding and its norm, blocks, norm, head."""

    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ("transformer.", "")

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size, build)
        self.word_embeddings_layernorm = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.h = nn.ModuleList(BloomBlock(config, build) for _ in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps, build)
        head = "word_embeddings" if config.tie_word_embeddings else "lm_head"
        self.lm_head = Head(config.hidden_size, config.vocab_size, head, build)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x: Tensor = self.word_embeddings_layernorm(self.word_embeddings(input_ids))
        residual = None
        for block in self.h:
            x, residual = block(x, residual, context)
        return self.ln_f.add(x, residual)[0]
