"""FlashAttention-2 (`flash_attn`) for long prompts, on NVIDIA's GPUs or, as Composable Kernel, on AMD's.

Its own paged keys want blocks of 256 tokens, too large for a prefix cache, so keys are gathered (arXiv 2307.08691).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.attention.base import AttentionSpec
from tgi_core.kernels.ops import KernelQuery
from tgi_core.triton.gathered import GatheredAttention
from tgi_core.triton.step import GatheredKeys


class FlashAttention2(GatheredAttention):
    """All that causal layers have, but biases by distance."""

    gathers_from = 512

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self._slopes: dict[tuple[float, ...], Tensor] = {}

    def can(self, spec: AttentionSpec) -> bool:
        return spec.kind == "causal"

    def attend(self, spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, gathered: GatheredKeys) -> Tensor:
        from flash_attn import flash_attn_varlen_func

        prompts = gathered.prompts
        out: Tensor = flash_attn_varlen_func(
            q,
            keys,
            values,
            cu_seqlens_q=prompts.starts,
            cu_seqlens_k=gathered.starts[prompts.first :],
            max_seqlen_q=prompts.longest,
            max_seqlen_k=gathered.longest,
            softmax_scale=spec.scale,
            causal=True,
            window_size=(spec.window - 1, 0) if spec.window is not None else (-1, -1),
            softcap=spec.soft_cap or 0.0,
            alibi_slopes=self._slopes_of(spec),
        )
        return out

    def _slopes_of(self, spec: AttentionSpec) -> Tensor | None:
        if spec.alibi_slopes is None:
            return None
        if spec.alibi_slopes not in self._slopes:
            slopes = torch.tensor(spec.alibi_slopes, dtype=torch.float32, device=self.device)
            self._slopes[spec.alibi_slopes] = slopes
        return self._slopes[spec.alibi_slopes]
