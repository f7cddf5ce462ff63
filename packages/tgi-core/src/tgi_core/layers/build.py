"""What layers need at construction and never again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tgi_core.attention.base import AttentionBackend
from tgi_core.kernels.ops import Kernels


@dataclass(frozen=True)
class BuildContext:
    """The chosen kernels, the attention backend, and the dtype of weights and activations."""

    kernels: Kernels
    attention: AttentionBackend
    dtype: torch.dtype
