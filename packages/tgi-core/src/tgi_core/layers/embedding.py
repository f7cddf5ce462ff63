"""Token embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tgi_core.layers.build import BuildContext
from tgi_core.weights.loader import Source


class Embedding(nn.Module):
    """ids [T] -> [T, N]"""

    weight: Tensor

    def __init__(self, count: int, size: int, build: BuildContext) -> None:
        super().__init__()
        self.count, self.size, self.dtype = count, size, build.dtype

    def load(self, source: Source) -> None:
        self.weight = source.read("weight", self.count, self.size, dtype=self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)
