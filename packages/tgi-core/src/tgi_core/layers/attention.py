"""Rotary position, KV cache and attention of one layer."""

from __future__ import annotations

from torch import Tensor, nn

from tgi_core.attention.base import AttentionSpec, ForwardContext
from tgi_core.layers.build import BuildContext
from tgi_core.layers.rotary import RotaryEmbedding


class Attention(nn.Module):
    """q [T, H, D], k and v [T, Hkv, D] -> [T, H, D]; without `rotary` positions come from elsewhere.

    In an encoder and across to one, k, v and `bias` are as `AttentionBackend.forward` takes them.
    """

    def __init__(self, spec: AttentionSpec, build: BuildContext, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__()
        self.rotary, self.kernels, self.backend = rotary, build.kernels, build.attention
        self.layer = build.attention.add_layer(spec)

    def keep(self, k: Tensor, v: Tensor, context: ForwardContext) -> None:
        """See `AttentionBackend.keep_source`."""
        self.backend.keep_source(self.layer, k, v, context.attention)

    def forward(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, context: ForwardContext, bias: Tensor | None = None
    ) -> Tensor:
        if self.rotary is not None and k is not None and v is not None:
            rotation = context.once(self.rotary)
            if self.backend.rotates:
                return self.backend.forward_rotated(self.layer, q, k, v, rotation, context.attention)
            q, k = self.kernels.rotary(q, k, *rotation)
        return self.backend.forward(self.layer, q, k, v, context.attention, bias)
