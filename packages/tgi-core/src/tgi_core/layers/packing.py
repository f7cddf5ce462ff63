"""Whether matrices of a layer are kept as numbers, or as the levels that their checkpoint stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tgi_core.kernels.ops import AffineLinearKernel, LinearKernel, Product


class Packing(NamedTuple):
    """For matrices that a kernel multiplies."""

    kernel: Product
    staged: torch.dtype  #: of `pack`'s argument: the model's, or int32 for codes
    pack: Callable[[Tensor], Any]


def packing_of(
    kernel: LinearKernel, affine: AffineLinearKernel, dtype: torch.dtype, in_levels: Iterable[bool]
) -> Packing:
    """Levels where the device has a kernel for them, and all of the matrices are stored so.

    Args:
        kernel: for plain weights.
        dtype: the model's.
        in_levels: of each matrix; see `Source.keeps_levels`.
    """
    if affine.keeps_levels and all(in_levels):
        return Packing(affine, torch.int32, partial(affine.pack, dtype=dtype))
    return Packing(kernel, dtype, kernel.pack)
