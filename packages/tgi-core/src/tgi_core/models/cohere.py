"""Cohere Command R: halves side by side on a norm without bias, neighbouring dimensions rotate, logits are scaled."""

from __future__ import annotations

from torch import Tensor, nn

from tgi_core.attention.base import ForwardContext
from tgi_core.layers.build import BuildContext
from tgi_core.layers.linear import Linear
from tgi_core.layers.mlp import GatedMLP
from tgi_core.layers.norm import HeadLayerNorm, LayerNormNoBias
from tgi_core.layers.rotary import RotaryEmbedding, pairs_to_halves
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaAttention, LlamaForCausalLM


class CohereAttention(LlamaAttention):
    """Queries and keys, and their norms, are put into the order of rotated halves when they are loaded."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__(layer, config, build, rotary)
        has_norms, size, eps = config.raw.get("use_qk_norm", False), self.head_size, config.norm_eps
        order = pairs_to_halves(size, size)

        def arrange(weight: Tensor) -> Tensor:
            return weight[:, order]

        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if has_norms:
            self.q_norm = HeadLayerNorm(self.heads, size, eps, build, arrange=arrange)
            self.k_norm = HeadLayerNorm(self.kv_heads, size, eps, build, config.kv_copies, arrange)

    def projection(self, config: ModelConfig, build: BuildContext) -> Linear:
        linear = super().projection(config, build)
        linear.arrange = self.arrange  # of whole heads, so that they may be repeated
        return linear

    def arrange(self, rows: Tensor) -> Tensor:
        """Rows of queries, keys and values as the checkpoint stores them."""
        heads = rows.view(-1, self.head_size, rows.shape[-1] if rows.dim() > 1 else 1).clone()
        turning = self.heads + self.kv_heads
        heads[:turning] = heads[:turning][:, pairs_to_halves(self.head_size, self.head_size)]
        return heads.view(rows.shape)

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class CohereDecoderLayer(nn.Module):
    """Attention and feed-forward side by side."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.input_layernorm = LayerNormNoBias(config.hidden_size, config.norm_eps, build)
        self.self_attn = CohereAttention(layer, config, build, rotary)
        self.mlp = GatedMLP(config, build)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        return self.self_attn(x, context) + self.mlp(x), residual


class CohereForCausalLM(LlamaForCausalLM):
    """Command R."""

    decoder_layer = CohereDecoderLayer
    final_norm = LayerNormNoBias

    def logits(self, hidden: Tensor) -> Tensor:
        scaled: Tensor = super().logits(hidden) * self.config.raw["logit_scale"]
        return scaled
