"""Token embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tgi_core.kernels.ops import RowsKernel
from tgi_core.layers.build import BuildContext
from tgi_core.layers.linear import Head
from tgi_core.weights.loader import Source


class Embedding(nn.Module):
    """ids [T] -> [T, N]

    Args:
        scale: of what is looked up, rounded to the weight's dtype.
    """

    weight: Tensor

    def __init__(self, count: int, size: int, build: BuildContext, *, scale: float = 1.0) -> None:
        super().__init__()
        self.count, self.size, self.dtype = count, size, build.dtype
        self.kernels, self.scale = build.kernels, torch.tensor(scale, dtype=build.dtype).item()
        self._rows: Callable[[Tensor], Tensor] | None = None

    def load(self, source: Source) -> None:
        if self._rows is None:
            self.weight = source.read("weight", self.count, self.size, dtype=self.dtype)

    def tie(self, head: Head) -> None:
        """Look up in the weight that a head holds, if its kernel can, instead of keeping another copy."""
        kernel = head.kernel
        if isinstance(kernel, RowsKernel) and head.is_whole and head.in_features == self.size:
            self._rows = lambda ids: kernel.rows(head.packed, ids, self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.kernels.look_up(self.weight, ids) if self._rows is None else self._rows(ids)
        return found if self.scale == 1.0 else found * self.scale


def tie_embeddings(model: nn.Module) -> None:
    """Let each head that is loaded from the weight of an embedding beside it hold that weight for both."""
    layers = dict(model.named_modules())
    for path, head in layers.items():
        if isinstance(head, Head):
            parent, dot, _ = path.rpartition(".")
            embedding = layers.get(parent + dot + head.names[0])
            if isinstance(embedding, Embedding):
                embedding.tie(head)
