"""OPT and Galactica: learned positions, and in OPT-350m a narrower embedding (arXiv 2205.01068, 2211.09085)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.activation import activation
from tgi_core.layers.attention import Attention
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.linear import ColumnLinear, Head, Linear, RowLinear, qkv_parts
from tgi_core.layers.norm import LayerNorm
from tgi_core.layers.unsummed import Unsummed, summed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM

POSITION_OFFSET = 2  #: rows of the position table that stand for padding


class OPTAttention(nn.Module):
    """Multi-head attention without rotary."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        self.heads, self.head_size = config.num_heads, config.head_size
        hidden, bias = config.hidden_size, config.raw.get("enable_bias", True)
        self.qkv = ColumnLinear(hidden, qkv_parts(config), ("q_proj", "k_proj", "v_proj"), build, bias=bias)
        self.out_proj = RowLinear(self.heads * self.head_size, (hidden,), ("out_proj",), build, bias=bias)
        spec = AttentionSpec(
            heads=self.heads, kv_heads=self.heads, head_size=self.head_size, scale=self.head_size**-0.5
        )
        self.attn = Attention(spec, build)

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_size)).unbind(1)
        out: Unsummed = self.out_proj(self.attn(q, k, v, context).flatten(-2))
        return out


def _norm(config: ModelConfig, build: BuildContext) -> LayerNorm:
    """The larger Galacticas have neither weights nor biases here."""
    affine = config.raw.get("layer_norm_elementwise_affine", True)
    return LayerNorm(config.hidden_size, config.norm_eps, build, affine=affine)


class OPTDecoderLayer(nn.Module):
    """Norms before each half; in OPT-350m after it."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        self.norms_first = config.raw.get("do_layer_norm_before", True)
        self.self_attn = OPTAttention(config, build)
        self.self_attn_layer_norm = _norm(config, build)
        hidden, wide, bias = config.hidden_size, config.intermediate_size, config.raw.get("enable_bias", True)
        self.fc1 = ColumnLinear(hidden, (wide,), ("fc1",), build, bias=bias)
        self.fc2 = RowLinear(wide, (hidden,), ("fc2",), build, bias=bias)
        self.activation = activation(config.activation, build.kernels)
        self.final_layer_norm = _norm(config, build)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Tensor | Unsummed, Tensor | None]:
        if self.norms_first:
            x, residual = self.self_attn_layer_norm.add(x, residual)
            x, residual = self.final_layer_norm.add(self.self_attn(x, context), residual)
            return self.feed_forward(x), residual
        x = summed(x)  # a tensor already, as norms come last here
        x, _ = self.self_attn_layer_norm.add(self.self_attn(x, context), x)
        return self.final_layer_norm.add(self.feed_forward(x), x)[0], None

    def feed_forward(self, x: Tensor) -> Unsummed:
        """fc2(act(fc1(x)))"""
        y: Unsummed = self.fc2(self.activation(self.fc1(x)))
        return y


class OPTForCausalLM(CausalLM):
    """Token and position embedding, layers, norm, head."""

    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ("model.decoder.", "decoder.", "model.", "")

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        hidden, narrow = config.hidden_size, config.raw.get("word_embed_proj_dim") or config.hidden_size
        self.embed_tokens = Embedding(config.vocab_size, narrow, build)
        self.embed_positions = Embedding(config.max_positions + POSITION_OFFSET, hidden, build)
        self.project_in = Linear(narrow, (hidden,), ("project_in",), build) if narrow != hidden else nn.Identity()
        self.layers = nn.ModuleList(OPTDecoderLayer(config, build) for _ in range(config.num_layers))
        ends_with_norm = config.raw.get("do_layer_norm_before", True) and not config.raw.get("_remove_final_layer_norm")
        self.final_layer_norm = _norm(config, build) if ends_with_norm else None
        self.project_out = Linear(hidden, (narrow,), ("project_out",), build) if narrow != hidden else nn.Identity()
        head = "embed_tokens" if config.tie_word_embeddings else "lm_head"
        self.lm_head = Head(narrow, config.vocab_size, head, build)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        x = self.project_in(self.embed_tokens(input_ids))
        x = x + self.embed_positions(context.positions + POSITION_OFFSET)
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, context)
        if self.final_layer_norm is not None:
            x, _ = self.final_layer_norm.add(x, residual)
        elif residual is not None:
            x = summed(x) + residual
        y: Tensor = self.project_out(x)
        return y
