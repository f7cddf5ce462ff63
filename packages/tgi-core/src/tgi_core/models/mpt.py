"""MPT: ALiBi, no biases, queries and keys and values that may be clipped."""

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
from tgi_core.layers.linear import ColumnLinear, Head, RowLinear, qkv_parts
from tgi_core.layers.mlp import MLP
from tgi_core.layers.norm import LayerNorm
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM
from tgi_core.weights.reader import WeightReader


class MptAttention(nn.Module):
    """Queries, keys and values come from one matrix, stacked."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        self.heads, self.head_size, hidden = config.num_heads, config.head_size, config.hidden_size
        settings = config.raw.get("attn_config") or {}
        self.clip: float | None = settings.get("clip_qkv")
        self.Wqkv = ColumnLinear(hidden, (qkv_parts(config),), ("Wqkv",), build)
        self.out_proj = RowLinear(self.heads * self.head_size, (hidden,), ("out_proj",), build)
        spec = AttentionSpec(
            heads=self.heads,
            kv_heads=self.heads,
            head_size=self.head_size,
            scale=settings.get("softmax_scale") or self.head_size**-0.5,
            alibi_slopes=alibi_slopes(self.heads, build.group, settings.get("alibi_bias_max", 8)),
        )
        self.attn = Attention(spec, build)

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        qkv: Tensor = self.Wqkv(x)
        if self.clip:
            qkv = qkv.clamp(-self.clip, self.clip)
        q, k, v = qkv.view(len(x), 3, self.heads, self.head_size).unbind(1)
        out: Unsummed = self.out_proj(self.attn(q, k, v, context).flatten(-2))
        return out


class MptBlock(nn.Module):
    """A norm before each half."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        self.norm_1 = LayerNorm(config.hidden_size, config.norm_eps, build, bias=False)
        self.attn = MptAttention(config, build)
        self.norm_2 = LayerNorm(config.hidden_size, config.norm_eps, build, bias=False)
        self.ffn = MLP(config, build, ("up_proj", "down_proj"), bias=False)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.norm_1.add(x, residual)
        x, residual = self.norm_2.add(self.attn(x, context), residual)
        return self.ffn(x), residual


class MptForCausalLM(CausalLM):
    """Embedding, blocks, norm, head; with ALiBi whatever its flag says, as in transformers."""

    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ("transformer.", "")

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.wte = Embedding(config.vocab_size, config.hidden_size, build)
        self.blocks = nn.ModuleList(MptBlock(config, build) for _ in range(config.num_layers))
        self.norm_f = LayerNorm(config.hidden_size, config.norm_eps, build, bias=False)
        head = "wte" if config.tie_word_embeddings else "lm_head"
        self.lm_head = Head(config.hidden_size, config.vocab_size, head, build)

    def load_weights(self, reader: WeightReader, progress: Callable[[float], None] = lambda fraction: None) -> None:
        if any(name.endswith("wpe.weight") for name in reader.names):
            raise UnsupportedModel("this MPT has learned positions in place of ALiBi, which is not implemented")
        super().load_weights(reader, progress)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x: Tensor = self.wte(input_ids)
        residual = None
        for block in self.blocks:
            x, residual = block(x, residual, context)
        return self.norm_f.add(x, residual)[0]
