"""Gives a checkpoint's tensors one by one, whatever the format, under Hugging Face's names."""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tgi_core.errors import WeightsError
from tgi_core.weights.safetensors_header import StoredTensor, read_safetensors_header
from tgi_core.weights.source import ModelFiles

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32",
    "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
T = TypeVar("T")
COPY_ELEMENTS = 1 << 22  # copied at a time
MAX_RESIDENT_BYTES = 64 << 20
MAX_RESIDENT_SHARE = 0.05  # of the checkpoint


class WeightReader(ABC):
    """An open checkpoint."""

    names: frozenset[str]
    total_bytes: int  #: of all tensors as they are stored

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""

    @abstractmethod
    def get(self, name: str, *, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        """A tensor on the CPU: copy it to where it belongs before asking for many more, and never write to it.

        Args:
            dtype: what to turn it into; None = as stored, or float32 if it is stored quantised.
            rows: only these of its first dimension, with a start and a stop; nothing else is read.

        Raises:
            WeightsError: the checkpoint has no such tensor.
        """

    def keeps_levels(self, name: str) -> bool:
        """Whether a matrix can be copied as int32 codes too; see `AffineLinearKernel.pack`."""
        return False

    def copy(
        self,
        name: str,
        out: Tensor,
        at: tuple[int, ...] = (),
        copy_weight: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    ) -> None:
        """Copy a tensor, or the block of it that begins `at` and has `out`'s shape, a few megabytes at a time.

        Args:
            out: of any dtype and device.
            at: a place in each dimension; () = the tensor is copied whole.
            copy_weight: (out, stored) for a few megabytes on the host that may change as soon as it returns.

        Raises:
            WeightsError: the checkpoint has no such tensor, or the block is not in it.
        """
        shape, first = self.shape(name), at or (0,) * out.dim()
        fits = len(first) == out.dim() == len(shape) and all(
            start + size <= whole for start, size, whole in zip(first, out.shape, shape, strict=True)
        )
        if not fits or (not at and shape != tuple(out.shape)):
            raise WeightsError(f"{name} is stored as {list(shape)}, but the model needs {list(out.shape)}")
        if out.dim() == 0:
            copy_weight(out, self.get(name))
            return
        block = tuple(slice(start, start + size) for start, size in zip(first[1:], out.shape[1:], strict=True))
        row_elements = math.prod(shape[1:])
        step = max(1, COPY_ELEMENTS // max(1, row_elements))
        for start in range(0, len(out), step):
            stop = min(start + step, len(out))
            stored = self.get(name, rows=slice(first[0] + start, first[0] + stop))
            copy_weight(out[start:stop], stored[:, *block])


def open_weights(files: ModelFiles) -> WeightReader:
    """Open the weights of a model; old .bin checkpoints are converted first, in a process of their own.

    Raises:
        WeightsError: a file is malformed; the message names it.
    """
    if not files.weights:
        raise WeightsError(f"{files.model_id} was resolved without its weights")
    kind = files.weights[0].suffix
    if kind == ".gguf":
        from tgi_core.weights.gguf_reader import GGUFReader

        return GGUFReader(files.weights[0])
    if kind == ".bin":
        from tgi_core.weights.convert import convert_to_safetensors

        return SafetensorsReader(convert_to_safetensors(files.weights))
    return SafetensorsReader(files.weights)


class NoWeights(WeightReader):
    """Of a model whose implementation finds its weights itself."""

    names: frozenset[str] = frozenset()
    total_bytes = 0

    def shape(self, name: str) -> tuple[int, ...]:
        """There is none."""
        raise WeightsError(f"{name} was asked for, but the model's folder has no weights that can be read here")

    def get(self, name: str, *, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        """There is none."""
        raise WeightsError(f"{name} was asked for, but the model's folder has no weights that can be read here")


class SafetensorsReader(WeightReader):
    """Memory-mapped safetensors files; tensors are views that the system reads when they are copied."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._tensors: dict[str, tuple[MappedFile, StoredTensor]] = {}
        total = sum(path.stat().st_size for path in paths)
        for path in paths:
            stored = read_safetensors_header(path)
            if stored:
                mapped = MappedFile(path, total)
                self._tensors |= {name: (mapped, tensor) for name, tensor in stored.items()}
        self.names = frozenset(self._tensors)
        self.total_bytes = sum(tensor.size for _, tensor in self._tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return entry(self._tensors, name)[1].shape

    def get(self, name: str, *, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        """See `WeightReader.get`."""
        mapped, stored = entry(self._tensors, name)
        torch_dtype = getattr(torch, DTYPES.get(stored.dtype, ""), None)
        if torch_dtype is None:
            raise WeightsError(f"{mapped.path}: {name} has the number format {stored.dtype}, which cannot be read")
        shape, offset, size = stored.shape, stored.offset, stored.size
        if rows is not None:
            row_bytes = size // max(1, shape[0])
            start, stop, _ = rows.indices(shape[0])
            shape, offset, size = (stop - start, *shape[1:]), offset + start * row_bytes, (stop - start) * row_bytes
        tensor = mapped.bytes(offset, size).view(torch_dtype).view(shape)
        return tensor if dtype is None else tensor.to(dtype)


class MappedFile:
    """A memory-mapped file that keeps few of its pages resident."""

    def __init__(self, path: Path, total_bytes: int) -> None:
        self.path = path
        with path.open("rb") as file:
            # a private copy-on-write mapping, as PyTorch wants writable memory; nobody writes
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._read_bytes = 0
        self._limit = min(MAX_RESIDENT_BYTES, int(MAX_RESIDENT_SHARE * total_bytes))

    def bytes(self, offset: int, size: int) -> Tensor:
        """A view [size] of uint8; where the offset is no multiple of 8, a copy, so that any dtype may view it."""
        self._forget_pages(size)
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        view = torch.frombuffer(self._map, dtype=torch.uint8, count=size, offset=offset)
        return view.clone() if offset % 8 else view

    def _forget_pages(self, size: int) -> None:
        """Drop what was read: views stay valid, their pages come from the file again if they are touched."""
        if self._read_bytes > self._limit and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read_bytes = 0
        self._read_bytes += size


def entry(tensors: Mapping[str, T], name: str) -> T:
    """The entry of a tensor, or WeightsError."""
    try:
        return tensors[name]
    except KeyError:
        raise WeightsError(f"the checkpoint has no tensor {name}; is it of another architecture?") from None
