"""Matrix products through oneDNN with weights in its blocked layout: one copy, read once per step."""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.kernels.ops import KernelQuery


def supports(query: KernelQuery) -> str:
    """Why oneDNN's packed weights cannot serve this model."""
    if query.dtype != "bfloat16":
        return f"packs bfloat16 only, not {query.dtype}"
    if not torch._C._has_mkldnn:
        return "this PyTorch is built without oneDNN"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 on this processor"
    return ""


class PackedLinear:
    """The weight is an opaque oneDNN tensor."""

    def pack(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return packed

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return out


packed_linear = PackedLinear()
