"""Whether matrices of a layer are kept as numbers, or as the levels that their checkpoint stores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from tgi_core.kernels.ops import AffineLinearKernel, LinearKernel


class Packing(NamedTuple):
    """For matrices that a kernel multiplies."""

    kernel: LinearKernel
    staged: torch.dtype  #: of what it packs: the model's, or int32 for codes


def packing_of(
    kernel: LinearKernel, affine: AffineLinearKernel, dtype: torch.dtype, in_levels: Iterable[bool]
) -> Packing:
    """Levels where the device has a kernel for them, and all of the matrices are stored so.

    Args:
        kernel: for plain weights.
        dtype: the model's.
        in_levels: of each matrix; see `Source.keeps_levels`.
    """
    return Packing(affine, torch.int32) if affine.keeps_levels and all(in_levels) else Packing(kernel, dtype)
