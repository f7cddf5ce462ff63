"""Linear layers whose weight may be stored in several matrices of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        transposed: the checkpoint stores [in, out], as GPT-2's does.
        arrange: puts the rows of the stacked weight [out, in], and of the bias [out], into the order of this layer.
    """

    def __init__(
        self,
        in_features: int,
        sizes: Sequence[int],
        names: Sequence[str],
        build: BuildContext,
        *,
        bias: bool = False,
        transposed: bool = False,
        arrange: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.transposed, self.arrange = transposed, arrange
        self.in_features, self.sizes, self.names, self.has_bias = in_features, tuple(sizes), tuple(names), bias
        self.kernel, self.dtype = build.linear, build.dtype
        self.packed: Any = None
        self.bias: Tensor | None = None

    def load(self, source: Source) -> None:
        for name, size in zip(self.names, self.sizes, strict=True):
            shape = (self.in_features, size) if self.transposed else (size, self.in_features)
            source.sibling(name).require("weight", *shape)
        weight = source.staging(sum(self.sizes), self.in_features, self.dtype)
        bias = torch.empty(sum(self.sizes), dtype=self.dtype) if self.has_bias else None
        start = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            sibling = source.sibling(name)
            rows = weight[start : start + size]
            sibling.copy("weight", rows.T if self.transposed else rows)
            if bias is not None:
                sibling.copy("bias", bias[start : start + size])
            start += size
        if self.arrange is not None:
            weight, bias = self.arrange(weight), self.arrange(bias) if bias is not None else None
        self.packed, self.bias = self.kernel.pack(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.kernel(x, self.packed, self.bias)
        return y


def split_fused_heads(groups: int, queries: int) -> Callable[[Tensor], Tensor]:
    """For checkpoints that store, group by group, the rows of `queries` query heads, a key head and a value head.

    Returns:
        an `arrange` that puts all queries first, then all keys, then all values.
    """

    def arrange(rows: Tensor) -> Tensor:
        heads = rows.view(groups, queries + 2, rows.shape[0] // (groups * (queries + 2)), -1)
        parts = (heads[:, :queries], heads[:, queries : queries + 1], heads[:, queries + 1 :])
        return torch.cat([part.flatten(0, 2) for part in parts]).view(rows.shape)

    return arrange
