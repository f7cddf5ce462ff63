"""Norms."""

from __future__ import annotations

from torch import Tensor, nn

from tgi_core.layers.build import BuildContext
from tgi_core.weights.loader import Source


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv 1910.07467)."""

    weight: Tensor

    def __init__(self, size: int, eps: float, build: BuildContext) -> None:
        super().__init__()
        self.size, self.eps, self.kernels, self.dtype = size, eps, build.kernels, build.dtype

    def load(self, source: Source) -> None:
        self.weight = source.read("weight", self.size, dtype=self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """norm(x + residual), x + residual; without a residual x begins it."""
        if residual is None:
            return self.kernels.rms_norm(x, self.weight, self.eps), x
        return self.kernels.add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm (arXiv 1607.06450).

    Args:
        name: what the checkpoint calls it, where that is not this module's own name.
        bias: False for families that have none.
    """

    weight: Tensor

    def __init__(
        self, size: int, eps: float, build: BuildContext, name: str | None = None, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.size, self.eps, self.kernels, self.dtype = size, eps, build.kernels, build.dtype
        self.name, self.has_bias = name, bias
        self.bias: Tensor | None = None

    def load(self, source: Source) -> None:
        source = source.sibling(self.name) if self.name else source
        self.weight = source.read("weight", self.size, dtype=self.dtype)
        if self.has_bias:
            self.bias = source.read("bias", self.size, dtype=self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """norm(x + residual), x + residual; without a residual x begins it."""
        if residual is None:
            return self(x), x
        return self.kernels.add_layer_norm(x, residual, self.weight, self.bias, self.eps)
