"""Linear layers whose weight may be stored in several matrices of the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tgi_core.layers.build import BuildContext
from tgi_core.weights.loader import Source


class Linear(nn.Module):
    """y = x W^T + b, with W the checkpoint's `names` stacked.

    Args:
        names: what the checkpoint calls the stacked matrices, in place of this module's own name.
        sizes: output features of each.
    """

    def __init__(
        self, in_features: int, sizes: Sequence[int], names: Sequence[str], build: BuildContext, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.sizes, self.names, self.has_bias = in_features, tuple(sizes), tuple(names), bias
        self.kernel, self.dtype = build.kernels.linear, build.dtype
        self.packed: Any = None
        self.bias: Tensor | None = None

    def load(self, source: Source) -> None:
        weight = source.staging(sum(self.sizes), self.in_features, self.dtype)
        bias = torch.empty(sum(self.sizes), dtype=self.dtype) if self.has_bias else None
        start = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            sibling = source.sibling(name)
            sibling.copy("weight", weight[start : start + size])
            if bias is not None:
                sibling.copy("bias", bias[start : start + size])
            start += size
        self.packed, self.bias = self.kernel.pack(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.kernel(x, self.packed, self.bias)
        return y
