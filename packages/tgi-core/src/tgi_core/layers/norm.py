"""Norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgi_core.distributed.group import Norm
from tgi_core.layers.build import BuildContext
from tgi_core.layers.unsummed import Unsummed, summed
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

    def add(self, x: Tensor | Unsummed, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """norm(x + residual), x + residual; without a residual x begins it."""
        if residual is None:
            x = summed(x)
            return self.kernels.rms_norm(x, self.weight, self.eps), x
        if isinstance(x, Unsummed):
            norm = Norm(self.weight, None, self.eps, is_rms=True)
            if found := x.group.sum_and_norm(x.share, residual, norm):
                return found
        return self.kernels.add_rms_norm(summed(x), residual, self.weight, self.eps)


class Float32RMSNorm(RMSNorm):
    """Multiplied by its weight before it is rounded to the dtype of the activations."""

    offset: ClassVar[float] = 0.0  #: added to the weight

    def load(self, source: Source) -> None:
        self.weight = source.read("weight", self.size, dtype=torch.float32) + self.offset

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)

    def add(self, x: Tensor | Unsummed, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        x = summed(x)
        if x.dtype is torch.float32:
            return super().add(x, residual)
        x = x if residual is None else x + residual
        return self(x), x


class DividedRMSNorm(Float32RMSNorm):
    """A norm over features that are divided over ranks.

    Args:
        size: features of one rank.
        copies: neighbouring ranks that hold the same ones.
    """

    def __init__(self, size: int, eps: float, build: BuildContext, copies: int = 1) -> None:
        super().__init__(size * build.group.size // copies, eps, build)
        self.group, self.copies = build.group, copies
        self.first, self.last = size * (build.group.rank // copies), size * (build.group.rank // copies + 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.group.size == 1:
            return super().forward(x)
        whole = self.group.all_gather(x)[:: self.copies].transpose(0, 1).flatten(1)
        return super().forward(whole)[:, self.first : self.last]


class OneBasedRMSNorm(Float32RMSNorm):
    """Its weight is stored as the difference from one (arXiv 2403.08295)."""

    offset = 1.0


class LayerNorm(nn.Module):
    """Layer norm (arXiv 1607.06450).

    Args:
        name: what the checkpoint calls it, where that is not this module's own name.
        bias: False for families that have none.
        affine: False for those that have no weight either.
    """

    weight: Tensor

    def __init__(
        self,
        size: int,
        eps: float,
        build: BuildContext,
        name: str | None = None,
        *,
        bias: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.eps, self.kernels, self.dtype = size, eps, build.kernels, build.dtype
        self.name, self.has_bias, self.is_affine = name, bias, affine
        self.bias: Tensor | None = None

    def load(self, source: Source) -> None:
        if not self.is_affine:
            self.weight = source.empty(self.size, dtype=self.dtype).fill_(1.0)
            return
        source = source.sibling(self.name) if self.name else source
        self.weight = source.read("weight", self.size, dtype=self.dtype)
        if self.has_bias:
            self.bias = source.read("bias", self.size, dtype=self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor | Unsummed, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """norm(x + residual), x + residual; without a residual x begins it."""
        if residual is None:
            x = summed(x)
            return self(x), x
        if isinstance(x, Unsummed):
            norm = Norm(self.weight, self.bias, self.eps, is_rms=False)
            if found := x.group.sum_and_norm(x.share, residual, norm):
                return found
        return self.kernels.add_layer_norm(summed(x), residual, self.weight, self.bias, self.eps)


class LayerNormNoBias(LayerNorm):
    """Layer norm of families that have no bias anywhere."""

    def __init__(self, size: int, eps: float, build: BuildContext) -> None:
        super().__init__(size, eps, build, bias=False)


class HeadLayerNorm(nn.Module):
    """Layer norm of each head [T, H, D] with weights of its own, in one tensor or in one for each head.

    Args:
        heads: of this rank.
        copies: neighbouring ranks that hold the same heads.
        arrange: puts the weight [H, D] into the order of the layer's heads.
    """

    weight: Tensor

    def __init__(
        self,
        heads: int,
        size: int,
        eps: float,
        build: BuildContext,
        copies: int = 1,
        arrange: Callable[[Tensor], Tensor] = lambda weight: weight,
    ) -> None:
        super().__init__()
        self.heads, self.size, self.eps, self.arrange = heads, size, eps, arrange
        self.stored_heads = heads * build.group.size // copies
        self.first = heads * (build.group.rank // copies)

    def load(self, source: Source) -> None:
        if source.has("norms.0.weight"):
            rows = [source.read(f"norms.{i}.weight", self.size, dtype=torch.float32) for i in range(self.stored_heads)]
            stored = torch.stack(rows)
        else:
            stored = source.read("weight", self.stored_heads, self.size, dtype=torch.float32)
        self.weight = self.arrange(stored[self.first : self.first + self.heads])

    def forward(self, x: Tensor) -> Tensor:
        return (F.layer_norm(x.float(), (self.size,), eps=self.eps) * self.weight).to(x.dtype)
