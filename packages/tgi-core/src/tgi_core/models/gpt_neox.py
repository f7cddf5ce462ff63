"""GPT-NeoX and Pythia: partial rotary, attention and feed-forward side by side (arXiv 2204.06745)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.attention import Attention
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.linear import ColumnLinear, Head, RowLinear, split_fused_heads
from tgi_core.layers.mlp import MLP
from tgi_core.layers.norm import LayerNorm
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM


class GPTNeoXAttention(nn.Module):
    """The checkpoint stores query, key and value of each head side by side."""

    def __init__(self, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.heads, self.head_size = config.num_heads, config.head_size
        hidden, bias = config.hidden_size, config.raw.get("attention_bias", True)
        size, arrange = self.heads * self.head_size, split_fused_heads(self.heads, 1)
        self.query_key_value = ColumnLinear(
            hidden, (3 * size,), ("query_key_value",), build, bias=bias, arrange=arrange
        )
        self.dense = RowLinear(size, (hidden,), ("dense",), build, bias=bias)
        spec = AttentionSpec(
            heads=self.heads, kv_heads=self.heads, head_size=self.head_size, scale=self.head_size**-0.5
        )
        self.attn = Attention(spec, build, rotary)

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.heads, self.head_size)).unbind(1)
        out: Unsummed = self.dense(self.attn(q, k, v, context).flatten(-2))
        return out


class GPTNeoXLayer(nn.Module):
    """Parallel residual: both halves read the layer's input; sequential where the config says so."""

    def __init__(self, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.is_parallel = config.raw.get("use_parallel_residual", True)
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.attention = GPTNeoXAttention(config, build, rotary)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.mlp = MLP(config, build, ("dense_h_to_4h", "dense_4h_to_h"), bias=True)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        attended = self.attention(x, context)
        if self.is_parallel:
            return self.mlp(self.post_attention_layernorm(residual)) + attended, residual
        x, residual = self.post_attention_layernorm.add(attended, residual)
        return self.mlp(x), residual


class GPTNeoXForCausalLM(CausalLM):
    """Embedding, layers, norm, head."""

    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ("gpt_neox.", "")

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        rotary = RotaryEmbedding(config.rotary, build)
        self.embed_in = Embedding(config.vocab_size, config.hidden_size, build)
        self.layers = nn.ModuleList(GPTNeoXLayer(config, build, rotary) for _ in range(config.num_layers))
        self.final_layer_norm = LayerNorm(config.hidden_size, config.norm_eps, build)
        head = "embed_in" if config.tie_word_embeddings else "embed_out"
        self.lm_head = Head(config.hidden_size, config.vocab_size, head, build)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x: Tensor = self.embed_in(input_ids)
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, context)
        return self.final_layer_norm.add(x, residual)[0]
