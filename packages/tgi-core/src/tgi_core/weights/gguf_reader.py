"""A GGUF file's tensors, dequantised, under Hugging Face's names and in its order of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from tgi_core.errors import WeightsError
from tgi_core.weights.gguf_config import NO_WEIGHTS, Architecture, architecture_of, huggingface_name, model_config
from tgi_core.weights.gguf_header import GGUFTensor, read_gguf_header
from tgi_core.weights.reader import COPY_ELEMENTS, MappedFile, WeightReader, entry

CHUNK_ELEMENTS = 1 << 18  # dequantised at a time: what fits the processor's cache is several times faster
PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F64: torch.float64,
}


@dataclass(frozen=True)
class _Stored:
    tensor: GGUFTensor
    heads: int = 0  #: > 0: the rows of each head are stored for interleaved rotary
    offset: float = 0.0  #: added to the stored values


class GGUFReader(WeightReader):
    """A memory-mapped GGUF file."""

    def __init__(self, path: Path) -> None:
        header = read_gguf_header(path)
        config = model_config(path, header)
        architecture = architecture_of(path, header)
        self._file = MappedFile(path, path.stat().st_size)
        self._tensors: dict[str, _Stored] = {}
        for stored_name, tensor in header.tensors.items():
            name = huggingface_name(architecture, stored_name)
            if name is None and stored_name not in NO_WEIGHTS:
                raise WeightsError(f"{path}: the tensor {stored_name} is not known; use the safetensors checkpoint")
            if name is not None:
                _check_format(path, stored_name, tensor)
                self._tensors[name] = _describe(name, tensor, architecture, config)
        self.names = frozenset(self._tensors)
        self.total_bytes = sum(stored.tensor.size for stored in self._tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return entry(self._tensors, name).tensor.shape

    def get(self, name: str, *, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        """See `WeightReader.get`."""
        stored = entry(self._tensors, name)
        tensor = stored.tensor
        columns = tensor.shape[-1]
        if len(tensor.shape) == 1:
            columns = 1 if stored.heads else columns
            values = self._values(stored, slice(0, tensor.shape[0] // columns), columns, dtype).view(-1)
            return values if rows is None else values[rows]
        wanted = slice(*(rows or slice(None)).indices(tensor.shape[0])[:2])
        inner = math.prod(tensor.shape[1:-1])
        wanted_rows = slice(wanted.start * inner, wanted.stop * inner)
        return self._values(stored, wanted_rows, columns, dtype).view(-1, *tensor.shape[1:])

    def _values(self, stored: _Stored, rows: slice, columns: int, dtype: torch.dtype | None) -> Tensor:
        """The wanted rows [R, columns] of a tensor seen as a matrix."""
        tensor = stored.tensor
        kind = GGMLQuantizationType(tensor.kind)
        row_count = math.prod(tensor.shape) // columns
        row_bytes = tensor.size // row_count
        if stored.heads:
            raw = self._file.bytes(tensor.offset, tensor.size).view(row_count, row_bytes)
            raw = raw[_interleaved_to_halves(row_count, stored.heads)[rows]]
        else:
            size = (rows.stop - rows.start) * row_bytes
            raw = self._file.bytes(tensor.offset + rows.start * row_bytes, size).view(-1, row_bytes)
        values = _dequantise(raw, kind, columns, dtype or PLAIN.get(kind, torch.float32))
        return values + stored.offset if stored.offset else values


def _describe(name: str, tensor: GGUFTensor, architecture: Architecture, config: dict[str, int]) -> _Stored:
    heads = 0
    if architecture.permuted and ".q_proj." in name:
        heads = config["num_attention_heads"]
    if architecture.permuted and ".k_proj." in name:
        heads = config["num_key_value_heads"]
    offset = -architecture.norm_offset if name.endswith("norm.weight") else 0.0
    return _Stored(tensor, heads, offset)


def _check_format(path: Path, name: str, tensor: GGUFTensor) -> None:
    kind = GGMLQuantizationType(tensor.kind)
    if kind not in PLAIN and kind not in quants._type_traits:
        raise WeightsError(f"{path}: {name} has the number format {kind.name}, which cannot be read; use another file")


def _interleaved_to_halves(rows: int, heads: int) -> Tensor:
    """Where each row [rows] is stored: GGUF keeps the two rows that rotate together side by side."""
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)


def _dequantise(raw: Tensor, kind: GGMLQuantizationType, columns: int, dtype: torch.dtype) -> Tensor:
    """raw [R, bytes of a row] -> [R, columns]."""
    if kind in PLAIN:
        return raw.contiguous().view(PLAIN[kind]).to(dtype)
    stored = raw.contiguous().numpy()
    values = torch.empty(raw.shape[0], columns, dtype=dtype)
    step = max(1, COPY_ELEMENTS // columns)
    for start in range(0, raw.shape[0], step):
        part = _dequantise_in_cache(stored[start : start + step], kind, columns)
        values[start : start + step] = torch.from_numpy(part)
    return values


def _dequantise_in_cache(stored: np.ndarray, kind: GGMLQuantizationType, columns: int) -> np.ndarray:
    """stored [R, bytes of a row] -> float32 [R, columns].  No PyTorch: it would start its threads for each chunk."""
    values = np.empty((stored.shape[0], columns), dtype=np.float32)
    step = max(1, CHUNK_ELEMENTS // columns)
    with np.errstate(all="ignore"):  # a random file may hold infinite scales
        for start in range(0, stored.shape[0], step):
            values[start : start + step] = quants.dequantize(stored[start : start + step], kind)
    return values
