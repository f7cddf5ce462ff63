"""GPT-J: neighbouring dimensions rotate together, one norm feeds both halves."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.attention import Attention
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.linear import ColumnLinear, Head, RowLinear, qkv_parts
from tgi_core.layers.mlp import MLP
from tgi_core.layers.norm import LayerNorm
from tgi_core.layers.rotary import RotaryEmbedding, pairs_to_halves
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM


class GPTJAttention(nn.Module):
    """Queries and keys are put into the order of rotated halves when they are loaded."""

    def __init__(self, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.heads, self.head_size, hidden = config.num_heads, config.head_size, config.hidden_size
        self.rotated = config.rotary.size
        self.qkv = ColumnLinear(hidden, qkv_parts(config), ("q_proj", "k_proj", "v_proj"), build, arrange=self.arrange)
        self.out_proj = RowLinear(self.heads * self.head_size, (hidden,), ("out_proj",), build)
        spec = AttentionSpec(
            heads=self.heads, kv_heads=self.heads, head_size=self.head_size, scale=self.head_size**-0.5
        )
        self.attn = Attention(spec, build, rotary)

    def arrange(self, rows: Tensor) -> Tensor:
        """Rows of queries, keys and values as the checkpoint stores them."""
        heads = rows.view(3, self.heads, self.head_size, -1).clone()
        heads[:2] = heads[:2][:, :, pairs_to_halves(self.head_size, self.rotated)]
        return heads.view(rows.shape)

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_size)).unbind(1)
        out: Unsummed = self.out_proj(self.attn(q, k, v, context).flatten(-2))
        return out


class GPTJBlock(nn.Module):
    """Attention and feed-forward side by side."""

    def __init__(self, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.attn = GPTJAttention(config, build, rotary)
        self.mlp = MLP(config, build, ("fc_in", "fc_out"), bias=True)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.ln_1.add(x, residual)
        return self.attn(x, context) + self.mlp(x), residual


class GPTJForCausalLM(CausalLM):
    """Embedding, blocks, norm, head with a bias."""

    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ("transformer.", "")

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        rotary = RotaryEmbedding(config.rotary, build)
        self.wte = Embedding(config.vocab_size, config.hidden_size, build)
        self.h = nn.ModuleList(GPTJBlock(config, build, rotary) for _ in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.lm_head = Head(config.hidden_size, config.vocab_size, "lm_head", build, bias=True)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x: Tensor = self.wte(input_ids)
        residual = None
        for block in self.h:
            x, residual = block(x, residual, context)
        return self.ln_f.add(x, residual)[0]
