"""Checkpoints whose linear layers hold whole numbers of a few bits, several to an int32, and a scale for each group.

They are read as plain weights, or as codes where a device keeps their levels: both have the weight's own shape, so
that every family, every layout of its layers and any number of ranks can use them.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tgi_core.errors import UnsupportedModel, WeightsError
from tgi_core.kernels.ops import Kernels, LinearKernel
from tgi_core.kernels.reference.affine import encode
from tgi_core.quantization.base import Quantization
from tgi_core.weights.reader import WeightReader

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
WORD_BITS = 32
COPY_ELEMENTS = 1 << 24  #: unpacked at a time
BYTE, HALF_BYTE = 8, 4  #: bits that kernels keep a level in
MEANING_BITS, RUN = 24, 128  #: of a zero and a scale, for so many inputs at most
PARTS = ("qweight", "qzeros", "scales", "g_idx")


class Packed(Quantization):
    """Weights of the checkpoint's own few bits; they take as many as the model's dtype where no kernel keeps levels."""

    reader: type[PackedReader]

    def __init__(self, stored: Mapping[str, Any]) -> None:
        super().__init__(stored)
        method = stored.get("quant_method")
        bits, group = stored.get("bits"), stored.get("group_size")
        if not isinstance(bits, int) or bits not in self.reader.known_bits:
            known = " and ".join(map(str, self.reader.known_bits))
            raise UnsupportedModel(f"{method} weights of {bits} bits cannot be read, of {known} they can")
        if not isinstance(group, int) or (group <= 0 and group != -1):
            raise UnsupportedModel(f"{method} weights in groups of {group!r}: group_size has to be a number, or -1")
        self.method, self.bits, self.group_size = method, bits, group

    def linear(self, kernels: Kernels) -> LinearKernel:
        if kernels.linear_affine.keeps_levels:
            self.layer_bits = (BYTE if self.bits > HALF_BYTE else HALF_BYTE) + MEANING_BITS / RUN
        else:
            log.info("%s weights of %d bits are expanded to the model's dtype", self.method, self.bits)
        return kernels.linear

    def open(self, reader: WeightReader) -> WeightReader:
        return self.reader(reader, self.bits, self.group_size)


class PackedReader(WeightReader):
    """Plain weights [M, N] under their usual names: (level - zero) * scale, by groups of inputs.

    A layer has scales [G, M], zeros [G, M] packed along outputs, and may say which group each input belongs to.

    Args:
        bits: of a level.
        group_size: inputs that follow each other in a group, where a layer does not say; -1 = all of them.
    """

    known_bits: tuple[int, ...]

    def __init__(self, reader: WeightReader, bits: int, group_size: int) -> None:
        self.reader, self.bits, self.group_size = reader, bits, group_size
        self._layers = {name.removesuffix(".qweight") for name in reader.names if name.endswith(".qweight")}
        packed = {f"{layer}.{part}" for layer in self._layers for part in PARTS}
        self.names = reader.names - packed | {f"{layer}.weight" for layer in self._layers}
        self.total_bytes = reader.total_bytes

    @abstractmethod
    def inputs_and_outputs(self, stored: tuple[int, ...]) -> tuple[int, int]:
        """(N, M) of a layer whose levels are stored in this shape."""

    @abstractmethod
    def levels(self, stored: Tensor, rows: slice) -> Tensor:
        """The levels of these outputs: [N, R] int32"""

    @abstractmethod
    def zeros(self, stored: Tensor, rows: slice) -> Tensor:
        """The level of zero of these outputs: [G, R] int32"""

    def shape(self, name: str) -> tuple[int, ...]:
        layer = self._layer(name)
        if layer is None:
            return self.reader.shape(name)
        stored = self.reader.shape(f"{layer}.qweight")
        if len(stored) != 2:
            raise WeightsError(f"{layer}.qweight has shape {list(stored)}, which is no matrix")
        inputs, outputs = self.inputs_and_outputs(stored)
        return outputs, inputs

    def keeps_levels(self, name: str) -> bool:
        layer = self._layer(name)
        return layer is not None and self.reader.get(f"{layer}.scales").dtype == torch.float16

    def get(self, name: str, *, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        layer = self._layer(name)
        if layer is None:
            return self.reader.get(name, dtype=dtype, rows=rows)
        weight = _expand(*self._parts(layer, rows, CPU))
        return weight if dtype is None else weight.to(dtype)

    def copy(
        self,
        name: str,
        out: Tensor,
        at: tuple[int, ...] = (),
        copy_weight: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    ) -> None:
        """See `WeightReader.copy`.  A packed matrix is unpacked where `out` is; into int32 it gives codes."""
        layer = self._layer(name)
        if layer is None:
            self.reader.copy(name, out, at, copy_weight)
            return
        first, first_column = at or (0, 0)
        columns = slice(first_column, first_column + out.shape[1])
        unpacked = encode if out.dtype == torch.int32 else _expand
        step = max(WORD_BITS, COPY_ELEMENTS // self.shape(name)[1])
        for start in range(0, len(out), step):
            rows = slice(first + start, first + min(start + step, len(out)))
            out[start : start + step] = unpacked(*self._parts(layer, rows, out.device))[:, columns]

    def _parts(self, layer: str, rows: slice | None, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """levels, zeros, scales of some outputs and all inputs: [R, N] each, the last as they are stored"""
        outputs, inputs = self.shape(f"{layer}.weight")
        wanted = slice(*(rows or slice(None)).indices(outputs)[:2])
        levels = self.levels(self._part(layer, "qweight").to(device), wanted)
        zeros = self.zeros(self._part(layer, "qzeros").to(device), wanted)
        scales, group = self.reader.get(f"{layer}.scales").to(device), self._groups(layer, inputs).to(device)
        if scales.shape != (len(zeros), outputs) or not 0 <= int(group.min()) <= int(group.max()) < len(zeros):
            raise WeightsError(
                f"{layer}: {len(zeros)} groups of zeros and scales of shape {list(scales.shape)} do not belong to a "
                f"weight of {inputs} inputs and {outputs} outputs; download the checkpoint again"
            )
        return levels.T, zeros[group].T, scales[:, wanted][group].T

    def _layer(self, name: str) -> str | None:
        layer, _, part = name.rpartition(".")
        return layer if part == "weight" and layer in self._layers else None

    def _part(self, layer: str, part: str) -> Tensor:
        stored = self.reader.get(f"{layer}.{part}")
        if stored.dtype != torch.int32:
            raise WeightsError(f"{layer}.{part} is stored as {stored.dtype}, not as int32")
        return stored

    def _groups(self, layer: str, inputs: int) -> Tensor:
        """The group of each input: [N] int64"""
        if f"{layer}.g_idx" in self.reader.names:
            stored = self.reader.get(f"{layer}.g_idx").long()
            if len(stored) != inputs:
                raise WeightsError(f"{layer}.g_idx has {len(stored)} entries for {inputs} inputs")
            return stored
        return torch.arange(inputs) // (inputs if self.group_size == -1 else self.group_size)


def _expand(levels: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    return (levels - zeros) * scales.float()


def unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    """int32 [.., n, ..] -> the numbers in each, the lowest bits first: [.., n * 32 / bits, ..] int32"""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)
    spread = words.unsqueeze(dim + 1) >> shifts.view(-1, *(1,) * (words.dim() - dim - 1))
    return (spread & (1 << bits) - 1).flatten(dim, dim + 1)
