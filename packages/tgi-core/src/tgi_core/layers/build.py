"""What layers need at construction and never again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from tgi_core.attention.base import AttentionBackend
from tgi_core.distributed.group import ALONE, Group
from tgi_core.kernels.ops import Kernels, LinearKernel


@dataclass(frozen=True)
class BuildContext:
    """The chosen kernels, the attention backend, the dtype of weights and activations, and where the model lies."""

    kernels: Kernels
    linear: LinearKernel  #: for the weights of linear layers: `kernels.linear`, or what a quantization multiplies with
    attention: AttentionBackend
    dtype: torch.dtype
    group: Group = ALONE  #: the ranks that hold this model
    folder: Path = Path()  #: of the model, for implementations that load themselves
    trust_remote_code: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  #: of the weights, for the same
    devices: int = 1  #: of the backend's kind that can be used, for the same
