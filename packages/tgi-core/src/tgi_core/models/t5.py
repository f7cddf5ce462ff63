"""T5, FLAN-T5, mT5 and UMT5: an encoder and a decoder with a bias by distance (arXiv 1910.10683, 2002.05202)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.errors import UnsupportedModel
from tgi_core.layers.attention import Attention
from tgi_core.layers.build import BuildContext
from tgi_core.layers.embedding import Embedding
from tgi_core.layers.linear import ColumnLinear, Head, RowLinear, qkv_parts
from tgi_core.layers.mlp import MLP, GatedMLP
from tgi_core.layers.norm import RMSNorm
from tgi_core.layers.relative_bias import RelativeBias
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import EncoderDecoderLM


class T5Attention(nn.Module):
    """Attention with unscaled scores; the layers of a stack share the first one's bias, or each has its own."""

    def __init__(
        self,
        config: ModelConfig,
        build: BuildContext,
        kind: Literal["causal", "encoder", "cross"],
        bias: RelativeBias | None = None,
    ) -> None:
        super().__init__()
        self.head_size, hidden = config.head_size, config.hidden_size
        q, k, v = qkv_parts(config)
        if kind == "cross":
            self.q = ColumnLinear(hidden, (q,), ("q",), build)
            self.kv = ColumnLinear(hidden, (k, v), ("k", "v"), build)
        else:
            self.qkv = ColumnLinear(hidden, (q, k, v), ("q", "k", "v"), build)
        self.o = RowLinear(config.num_heads * config.head_size, (hidden,), ("o",), build)
        self.relative_attention_bias = bias
        self.attn = Attention(
            AttentionSpec(
                heads=config.num_heads, kv_heads=config.num_heads, head_size=config.head_size, scale=1.0, kind=kind
            ),
            build,
        )

    def forward(self, x: Tensor, context: ForwardContext) -> Unsummed:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_size)).unbind(-3)
        bias = self.relative_attention_bias.table if self.relative_attention_bias is not None else None
        out: Unsummed = self.o(self.attn(q, k, v, context, bias).flatten(-2))
        return out

    def keys_and_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """encoded [S, N] -> [S, H, D] each"""
        k, v = self.kv(encoded).unflatten(-1, (2, -1, self.head_size)).unbind(-3)
        return k, v

    def across(self, x: Tensor, encoded: Tensor | None, context: ForwardContext) -> Unsummed:
        """x [T, N] sees the sources; `encoded` [S, N] are those that begin."""
        k = v = None
        if encoded is not None:
            k, v = self.keys_and_values(encoded)
        q = self.q(x).unflatten(-1, (-1, self.head_size))
        out: Unsummed = self.o(self.attn(q, k, v, context).flatten(-2))
        return out


class T5SelfAttentionLayer(nn.Module):
    """A norm, then attention within the sequence or the source."""

    def __init__(self, config: ModelConfig, build: BuildContext, is_decoder: bool, bias: RelativeBias) -> None:
        super().__init__()
        self.layer_norm = RMSNorm(config.hidden_size, config.norm_eps, build)
        self.SelfAttention = T5Attention(config, build, "causal" if is_decoder else "encoder", bias)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, encoded: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.layer_norm.add(x, residual)
        return self.SelfAttention(x, context), residual


class T5CrossAttentionLayer(nn.Module):
    """A norm, then attention to the source."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        self.layer_norm = RMSNorm(config.hidden_size, config.norm_eps, build)
        self.EncDecAttention = T5Attention(config, build, "cross")

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, encoded: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.layer_norm.add(x, residual)
        return self.EncDecAttention.across(x, encoded, context), residual

    def keep(self, encoded: Tensor, context: ForwardContext) -> None:
        """Of a source, for later."""
        self.EncDecAttention.attn.keep(*self.EncDecAttention.keys_and_values(encoded), context)


class T5FeedForwardLayer(nn.Module):
    """A norm, then a feed-forward layer, gated or not."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        self.layer_norm = RMSNorm(config.hidden_size, config.norm_eps, build)
        *gated, activation = config.raw["feed_forward_proj"].split("-", 1)
        if gated:
            config = replace(config, activation="gelu_new" if activation == "gelu" else activation)
            self.DenseReluDense: nn.Module = GatedMLP(config, build, names=("wi_0", "wi_1", "wo"))
        else:
            self.DenseReluDense = MLP(replace(config, activation=activation), build, ("wi", "wo"), bias=False)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, encoded: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.layer_norm.add(x, residual)
        return self.DenseReluDense(x), residual


class T5Block(nn.Module):
    """The layers of one block."""

    def __init__(self, config: ModelConfig, build: BuildContext, is_decoder: bool, bias: RelativeBias) -> None:
        super().__init__()
        self.layer = nn.ModuleList([T5SelfAttentionLayer(config, build, is_decoder, bias)])
        if is_decoder:
            self.layer.append(T5CrossAttentionLayer(config, build))
        self.layer.append(T5FeedForwardLayer(config, build))

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, encoded: Tensor | None, context: ForwardContext
    ) -> tuple[Tensor | Unsummed, Tensor | None]:
        for layer in self.layer:
            x, residual = layer(x, residual, encoded, context)
        return x, residual


class T5Stack(nn.Module):
    """x [T, N], or [S, N] of an encoder -> the same, normalised."""

    def __init__(self, config: ModelConfig, build: BuildContext, *, is_decoder: bool, own_biases: bool) -> None:
        super().__init__()
        raw = config.raw
        blocks = (raw.get("num_decoder_layers") if is_decoder else None) or config.num_layers
        biases = [
            RelativeBias(
                config.num_heads,
                raw["relative_attention_num_buckets"],
                raw["relative_attention_max_distance"],
                build,
                both_ways=not is_decoder,
            )
            for _ in range(blocks if own_biases else 1)
        ]
        self.block = nn.ModuleList(
            T5Block(config, build, is_decoder, biases[number if own_biases else 0]) for number in range(blocks)
        )
        self.final_layer_norm = RMSNorm(config.hidden_size, config.norm_eps, build)

    def forward(self, x: Tensor, encoded: Tensor | None, context: ForwardContext) -> Tensor:
        residual = None
        for block in self.block:
            x, residual = block(x, residual, encoded, context)
        return self.final_layer_norm.add(x, residual)[0]


class T5ForConditionalGeneration(EncoderDecoderLM):
    """Embedding, encoder, decoder, head; the encoder reads the sources that begin in a step.

    Raises:
        UnsupportedModel: in float16, which the feed-forward layers of trained checkpoints exceed.
    """

    checkpoint_prefixes = ("",)
    own_biases: ClassVar[bool] = False  #: in every block

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        if build.dtype is torch.float16:
            raise UnsupportedModel("T5 exceeds the range of float16; leave --dtype out, or ask for bfloat16 or float32")
        self.scale = self.head_scale(config)
        self.shared = Embedding(config.vocab_size, config.hidden_size, build)
        self.encoder = T5Stack(config, build, is_decoder=False, own_biases=self.own_biases)
        self.decoder = T5Stack(config, build, is_decoder=True, own_biases=self.own_biases)
        head = "shared" if config.tie_word_embeddings else "lm_head"
        self.lm_head = Head(config.hidden_size, config.vocab_size, head, build)

    @staticmethod
    def head_scale(config: ModelConfig) -> float:
        """Of hidden states before the head; transformers 4 says by `tie_word_embeddings` whether there is one."""
        is_scaled = config.raw.get("scale_decoder_outputs", config.raw.get("tie_word_embeddings") is not False)
        return config.hidden_size**-0.5 if is_scaled else 1.0

    def encode(self, context: ForwardContext) -> None:
        if (encoded := self._encoded(context)) is not None:
            for layer in self.decoder.modules():
                if isinstance(layer, T5CrossAttentionLayer):
                    layer.keep(encoded, context)

    def _encoded(self, context: ForwardContext) -> Tensor | None:
        if context.encoder is None:
            return None
        encoded: Tensor = self.encoder(self.shared(context.encoder.ids), None, context)
        return encoded

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        encoded = self._encoded(context)
        hidden: Tensor = self.decoder(self.shared(input_ids), encoded, context)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden if self.scale == 1.0 else hidden * self.scale)


class MT5ForConditionalGeneration(T5ForConditionalGeneration):
    """mT5 (arXiv 2010.11934): T5 v1.1, whose head is never scaled."""

    @staticmethod
    def head_scale(config: ModelConfig) -> float:
        return 1.0


class UMT5ForConditionalGeneration(T5ForConditionalGeneration):
    """UMT5 (arXiv 2304.09151): a bias in every block, and a head that is always scaled."""

    own_biases = True

    @staticmethod
    def head_scale(config: ModelConfig) -> float:
        return float(config.hidden_size**-0.5)
