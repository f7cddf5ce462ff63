"""Matrix products."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Linear:
    """The weight stays as it is."""

    def pack(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, packed, bias)


linear = Linear()
