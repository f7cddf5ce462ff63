"""StableLM: Llama with layer norms and partial rotary; the larger ones have parallel halves and normed heads."""

from __future__ import annotations

from torch import Tensor, nn

from tgi_core.attention.base import ForwardContext
from tgi_core.layers.build import BuildContext
from tgi_core.layers.mlp import GatedMLP
from tgi_core.layers.norm import HeadLayerNorm, LayerNorm
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.models.llama import LlamaAttention, LlamaForCausalLM


class StableLmAttention(LlamaAttention):
    """Each query and key head may have a norm of its own."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__(layer, config, build, rotary)
        has_norms, size, eps = config.raw.get("qk_layernorm", False), self.head_size, config.norm_eps
        self.q_layernorm: nn.Module = nn.Identity()
        self.k_layernorm: nn.Module = nn.Identity()
        if has_norms:
            self.q_layernorm = HeadLayerNorm(self.heads, size, eps, build)
            self.k_layernorm = HeadLayerNorm(self.kv_heads, size, eps, build, config.kv_copies)

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_layernorm(q), self.k_layernorm(k)


class StableLmDecoderLayer(nn.Module):
    """Attention, then feed-forward; or side by side on one norm."""

    def __init__(self, layer: int, config: ModelConfig, build: BuildContext, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.self_attn = StableLmAttention(layer, config, build, rotary)
        self.post_attention_layernorm: LayerNorm | None = None
        if not config.raw.get("use_parallel_residual", False):
            self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps, build)
        self.mlp = GatedMLP(config, build)

    def forward(
        self, x: Tensor | Unsummed, residual: Tensor | None, context: ForwardContext
    ) -> tuple[Unsummed, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        attended = self.self_attn(x, context)
        if self.post_attention_layernorm is None:
            return attended + self.mlp(x), residual
        x, residual = self.post_attention_layernorm.add(attended, residual)
        return self.mlp(x), residual


class StableLmForCausalLM(LlamaForCausalLM):
    """StableLM."""

    decoder_layer = StableLmDecoderLayer
    final_norm = LayerNorm
