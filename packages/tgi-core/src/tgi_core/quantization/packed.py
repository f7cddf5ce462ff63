"""Checkpoints whose linear layers hold whole numbers of a few bits, several to an int32, and a scale for each group.

They are read as plain weights, so that every family, every layout of its layers and any number of ranks can use them.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tgi_core.errors import UnsupportedModel, WeightsError
from tgi_core.kernels.ops import Kernels, LinearKernel
from tgi_core.quantization.base import Quantization
from tgi_core.weights.reader import WeightReader

log = logging.getLogger(__name__)

WORD_BITS = 32
PARTS = ("qweight", "qzeros", "scales", "g_idx")


class Packed(Quantization):
    """Weights of the checkpoint's own few bits; here they take as many as the model's dtype."""

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
        self.bits, self.group_size = bits, group
        log.info("%s weights of %d bits are expanded to the model's dtype while they load", method, bits)

    def linear(self, kernels: Kernels) -> LinearKernel:
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

    def get(self, name: str, *, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        layer = self._layer(name)
        if layer is None:
            return self.reader.get(name, dtype=dtype, rows=rows)
        outputs, inputs = self.shape(name)
        wanted = slice(*(rows or slice(None)).indices(outputs)[:2])
        levels = self.levels(self._part(layer, "qweight"), wanted)
        zeros = self.zeros(self._part(layer, "qzeros"), wanted)
        scales, group = self.reader.get(f"{layer}.scales"), self._groups(layer, inputs)
        if scales.shape != (len(zeros), outputs) or not 0 <= int(group.min()) <= int(group.max()) < len(zeros):
            raise WeightsError(
                f"{layer}: {len(zeros)} groups of zeros and scales of shape {list(scales.shape)} do not belong to a "
                f"weight of {inputs} inputs and {outputs} outputs; download the checkpoint again"
            )
        weight = (levels - zeros[group]) * scales[:, wanted].float()[group]
        return weight.T if dtype is None else weight.T.to(dtype)

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


def unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    """int32 [.., n, ..] -> the numbers in each, the lowest bits first: [.., n * 32 / bits, ..] int32"""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    spread = words.unsqueeze(dim + 1) >> shifts.view(-1, *(1,) * (words.dim() - dim - 1))
    return (spread & (1 << bits) - 1).flatten(dim, dim + 1)
