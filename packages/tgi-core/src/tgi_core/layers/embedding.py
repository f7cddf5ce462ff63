"""Token embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgi_core.layers.build import BuildContext
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
        self.scale = torch.tensor(scale, dtype=build.dtype).item()

    def load(self, source: Source) -> None:
        self.weight = source.read("weight", self.count, self.size, dtype=self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        found = F.embedding(ids, self.weight)
        return found if self.scale == 1.0 else found * self.scale
