"""GPT-2, and GPTBigCode (SantaCoder, StarCoder), which differs in multi-query attention (arXiv 2305.06161)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.attention import Attention
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.linear import ColumnLinear, Head, RowLinear, Rows, qkv_parts, split_fused_heads
from tgi_core.layers.mlp import MLP
from tgi_core.layers.norm import LayerNorm
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM


class GPT2Attention(nn.Module):
    """Learned positions come from the embedding; `scale` may fall with the layer."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, *, transposed: bool) -> None:
        super().__init__()
        self.heads, self.head_size, hidden = config.num_heads, config.head_size, config.hidden_size
        self.kv_heads = config.num_kv_heads
        q, k, v = qkv_parts(config)
        parts: dict[str, Rows] = {"c_attn": (q, k, v)}
        arrange = None
        if config.architecture == "GPT2LMHeadCustomModel":  # SantaCoder's own code
            parts = {"q_attn": q, "kv_attn": (k, v)}
        elif config.model_type == "gpt_bigcode" and not config.raw.get("multi_query", True):
            parts, arrange = {"c_attn": q.size + k.size + v.size}, split_fused_heads(self.heads, 1)
        self.c_attn = ColumnLinear(
            hidden, tuple(parts.values()), tuple(parts), build, bias=True, transposed=transposed, arrange=arrange
        )
        self.c_proj = RowLinear(q.size, (hidden,), ("c_proj",), build, bias=True, transposed=transposed)
        scale = self.head_size**-0.5 if config.raw.get("scale_attn_weights", True) else 1.0
        if config.raw.get("scale_attn_by_inverse_layer_idx"):
            scale /= layer + 1
        spec = AttentionSpec(heads=self.heads, kv_heads=self.kv_heads, head_size=self.head_size, scale=scale)
        self.attn = Attention(spec, build)

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        qkv = self.c_attn(x).unflatten(-1, (-1, self.head_size))
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=-2)
        out: Unsummed = self.c_proj(self.attn(q, k, v, context).flatten(-2))
        return out


class GPT2Block(nn.Module):
    """A norm before each half."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, *, transposed: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.attn = GPT2Attention(layer, config, build, transposed=transposed)
        self.ln_2 = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.mlp = MLP(config, build, ("c_fc", "c_proj"), bias=True, transposed=transposed)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.ln_1.add(x, residual)
        x, residual = self.ln_2.add(self.attn(x, context), residual)
        return self.mlp(x), residual


class GPT2LMHeadModel(CausalLM):
    """Token and position embedding, blocks, norm, head."""

    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ("transformer.", "")
    transposed: ClassVar[bool] = True  #: the checkpoint stores weights as [in, out]

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.wte = Embedding(config.vocab_size, config.hidden_size, build)
        self.wpe = Embedding(config.max_positions, config.hidden_size, build)
        self.h = nn.ModuleList(
            GPT2Block(i, config, build, transposed=self.transposed) for i in range(config.num_layers)
        )
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps, build)
        head = "wte" if config.tie_word_embeddings else "lm_head"
        self.lm_head = Head(config.hidden_size, config.vocab_size, head, build)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x: Tensor = self.wte(input_ids) + self.wpe(context.positions)
        residual = None
        for block in self.h:
            x, residual = block(x, residual, context)
        return self.ln_f.add(x, residual)[0]


class GPTBigCodeForCausalLM(GPT2LMHeadModel):
    """Ordinary linear layers."""

    transposed = False
