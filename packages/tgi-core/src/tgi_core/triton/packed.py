"""Small arrays that go to the device in one copy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tgi_core.attention.base import Int32Array

ALIGNMENT = 16  #: of each array, in elements: kernels are compiled once, for aligned pointers


class Packed:
    """Collects arrays of int32, then is copied."""

    def __init__(self) -> None:
        self._arrays: list[Int32Array] = []
        self._starts = [0]

    def add(self, array: Int32Array) -> int:
        """Returns the array's number."""
        self._arrays.append(array)
        self._starts.append(self._starts[-1] + aligned(array.size))
        return len(self._arrays) - 1

    def copy_to(self, device: torch.device, out: Tensor | None = None) -> list[Tensor]:
        """The arrays on the device, flat, in the memory of `out` if given; does not wait for the device."""
        host = torch.empty(self._starts[-1], dtype=torch.int32, pin_memory=device.type != "cpu")
        flat = host.numpy()
        for array, start in zip(self._arrays, self._starts, strict=False):
            flat[start : start + array.size] = array.reshape(-1)
        there = torch.empty(len(host), dtype=torch.int32, device=device) if out is None else out[: len(host)]
        there.copy_(host, non_blocking=True)
        return [there[start : start + array.size] for array, start in zip(self._arrays, self._starts, strict=False)]


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def arange(size: int) -> Int32Array:
    """0, 1, ... [size]"""
    return np.arange(size, dtype=np.int32)
