"""Memory from the system that is taken as it is written, in huge pages where there are any."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor


def lazy_pages(size_bytes: int) -> mmap.mmap:
    """Zeros that take no memory until they are written."""
    pages = mmap.mmap(-1, size_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def lazy_zeros(size_bytes: int) -> Tensor:
    """The same as a tensor [size_bytes] of uint8."""
    return torch.frombuffer(lazy_pages(size_bytes), dtype=torch.uint8)
