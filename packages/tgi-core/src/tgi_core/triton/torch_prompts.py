"""PyTorch's attention for prompts, where Triton has no use of the matrix units: NVIDIA's Turing, a T4."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from tgi_core.attention.base import AttentionSpec, FixedMetadata
from tgi_core.triton.gathered import GatheredAttention
from tgi_core.triton.step import GatheredKeys


class TorchPrompts(GatheredAttention):
    """One sequence after the other; steps with prompts are not recorded."""

    gathers_from = 2

    def fixed(self, rows: int, tokens: int | None, width: int, variant: int) -> FixedMetadata | None:
        return super().fixed(rows, tokens, width, variant) if tokens is None else None

    def can(self, spec: AttentionSpec) -> bool:
        """PyTorch has no soft cap, and slopes would take a score's memory for each query and key."""
        return spec.kind == "causal" and spec.soft_cap is None and spec.alibi_slopes is None

    def attend(self, spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, gathered: GatheredKeys) -> Tensor:
        parts = (
            x.split(lens) for x, lens in ((q, gathered.prompts.lens), (keys, gathered.lens), (values, gathered.lens))
        )
        return torch.cat([_attend(spec, *sequence) for sequence in zip(*parts, strict=True)])


def _attend(spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q [T, H, D], keys and values [K, Hkv, D] of a sequence whose last queries these are -> [T, H, D]"""
    group = spec.heads // spec.kv_heads
    q, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q, keys, values))
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    mask: Tensor = causal_lower_right(q.shape[2], keys.shape[2])
    if spec.window is not None and spec.window < keys.shape[2]:
        position = torch.arange(keys.shape[2], device=q.device)
        behind = position[-q.shape[2] :, None] - position
        mask = (behind >= 0) & (behind < spec.window)
    return scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=spec.scale)[0].transpose(0, 1)
