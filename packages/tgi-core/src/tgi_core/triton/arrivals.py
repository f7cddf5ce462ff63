"""Programs of a kernel that wait for none: the last one to arrive does what needs the work of all."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_GROUPS = 4096  #: of programs in a kernel


@triton.jit
def arrives_last(arrived, programs):
    """Whether this is the last of so many programs, whose work others see then; `arrived` is left as it was."""
    tl.debug_barrier()  # of all threads, before one of them tells the other programs
    is_last = tl.atomic_add(arrived, 1) == programs - 1
    if is_last:
        tl.store(arrived, 0)
    return is_last


@cache
def arrivals(device: torch.device) -> Tensor:
    """How many programs of each group have arrived, none between kernels: all kernels of a stream share them.  To be
    made before a step is recorded, as zeros that are recorded are written with each replay only."""
    return torch.zeros(MOST_GROUPS, dtype=torch.int32, device=device)
