"""Memory for what a recorded step computes: it lies in the same place whenever the step is repeated."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tgi_core.cpu.memory import lazy_zeros, whole_lines

CHUNK_BYTES = 8 << 20  #: taken from the system at a time, or more for a larger tensor


@dataclass
class _Chunk:
    """Memory, and its parts [begin, end) that no tensor holds, in order."""

    memory: Tensor
    holes: list[tuple[int, int]] = field(default_factory=list)


class Arena:
    """Tensors whose memory is used again as soon as nothing refers to it.

    Args:
        memory: shared with other arenas that are not used at the same time; grows.
    """

    def __init__(self, memory: list[Tensor]) -> None:
        self._memory = memory
        self._chunks = [_Chunk(chunk, [(0, len(chunk))]) for chunk in memory]

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with anything in it."""
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else 0
        needed = whole_lines((last + 1) * dtype.itemsize)
        chunk, begin = self._take(needed)
        # the storage of a tensor made of an array holds on to that array, for all its views
        buffer = chunk.memory.numpy()[begin : begin + needed]
        weakref.finalize(buffer, _release, chunk.holes, begin, begin + needed)
        return torch.from_numpy(buffer).view(dtype).as_strided(size, stride)

    def alias(self, tensor: Tensor) -> Tensor:
        """The same place for one who does not keep it from being used again; a tensor from elsewhere is itself."""
        for chunk in self._chunks:
            begin = tensor.data_ptr() - chunk.memory.data_ptr()
            if 0 <= begin < len(chunk.memory):
                whole = chunk.memory.view(tensor.dtype)
                return whole.as_strided(tensor.shape, tensor.stride(), begin // tensor.dtype.itemsize)
        return tensor

    def _take(self, needed: int) -> tuple[_Chunk, int]:
        """The first hole that is large enough, in a new chunk if there is none."""
        for chunk in self._chunks:
            for index, (begin, end) in enumerate(chunk.holes):
                if end - begin >= needed:
                    chunk.holes[index : index + 1] = [(begin + needed, end)] if end - begin > needed else []
                    return chunk, begin
        self._memory.append(lazy_zeros(max(needed, CHUNK_BYTES)))
        self._chunks.append(_Chunk(self._memory[-1], [(0, len(self._memory[-1]))]))
        return self._take(needed)


def _release(holes: list[tuple[int, int]], begin: int, end: int) -> None:
    """Put a hole back, joined to its neighbours."""
    merged = [(begin, end)]
    for hole in sorted(holes):
        if hole[1] == merged[0][0]:
            merged[0] = (hole[0], merged[0][1])
        elif hole[0] == merged[0][1]:
            merged[0] = (merged[0][0], hole[1])
        else:
            merged.append(hole)
    holes[:] = sorted(merged)
