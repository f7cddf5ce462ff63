"""What layers need at construction and never again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend
from tgi_core.config import EngineConfig
from tgi_core.distributed.group import ALONE, Group
from tgi_core.kernels.ops import Kernels, LinearKernel

CPU = torch.device("cpu")


@dataclass(frozen=True)
class BuildContext:
    """The chosen kernels, the attention backend, dtype and device of weights, and where the model lies."""

    kernels: Kernels
    linear: LinearKernel  #: for the weights of linear layers: `kernels.linear`, or what a quantization multiplies with
    attention: AttentionBackend
    dtype: torch.dtype
    device: torch.device = CPU
    copy_weight: Callable[[Tensor, Tensor], object] = Tensor.copy_  #: see `DeviceBackend.copy_weight`
    head: LinearKernel | None = None  #: for the matrix that makes logits, where it is not `linear`
    group: Group = ALONE  #: the ranks that hold this model
    folder: Path = Path()  #: of the model, for implementations that load themselves
    trust_remote_code: bool = False
    devices: int = 1  #: of the backend's kind that can be used, for the same
    wishes: EngineConfig = field(
        default_factory=EngineConfig
    )  #: what a person asked for, for what is compiled to fixed shapes
