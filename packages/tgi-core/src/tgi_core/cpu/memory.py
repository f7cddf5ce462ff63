"""Memory from the system that is taken as it is written, in huge pages where there are any."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

CACHE_LINE = 64  #: bytes


def whole_lines(size_bytes: int) -> int:
    """The next multiple of a cache line."""
    return -(-size_bytes // CACHE_LINE) * CACHE_LINE


def lazy_zeros(size_bytes: int) -> Tensor:
    """Zeros [size_bytes] of uint8 that take no memory until they are written."""
    pages = mmap.mmap(-1, size_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


class WeightMemory:
    """Packed weights one after the other, so that huge pages serve small ones too; freed when the last one is."""

    CHUNK_BYTES = 64 << 20

    def __init__(self) -> None:
        self._chunk, self._used = torch.empty(0, dtype=torch.uint8), 0

    def empty(self, elements: int, dtype: torch.dtype) -> Tensor:
        """A tensor [elements] with anything in it."""
        size_bytes = whole_lines(elements * dtype.itemsize)
        if self._used + size_bytes > len(self._chunk):
            self._chunk, self._used = lazy_zeros(max(size_bytes, self.CHUNK_BYTES)), 0
        part = self._chunk[self._used : self._used + elements * dtype.itemsize]
        self._used += size_bytes
        return part.view(dtype)


weights = WeightMemory()
