"""GPTQ checkpoints (arXiv 2210.17323), as AutoGPTQ and GPTQModel write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tgi_core.errors import UnsupportedModel
from tgi_core.quantization.packed import WORD_BITS, Packed, PackedReader, unpack
from tgi_core.weights.reader import WeightReader

FORMATS = ("gptq", "gptq_v2")


class GptqReader(PackedReader):
    """Levels are packed along inputs: [N * bits / 32, M].

    Args:
        zeros_less_one: zeros are stored less one, as they were before the second version of the format.
    """

    known_bits = (2, 4, 8)

    def __init__(self, reader: WeightReader, bits: int, group_size: int, *, zeros_less_one: bool = True) -> None:
        super().__init__(reader, bits, group_size)
        self.zeros_less_one = zeros_less_one

    def inputs_and_outputs(self, stored: tuple[int, ...]) -> tuple[int, int]:
        return stored[0] * WORD_BITS // self.bits, stored[1]

    def levels(self, stored: Tensor, rows: slice) -> Tensor:
        return unpack(stored[:, rows], self.bits, 0)

    def zeros(self, stored: Tensor, rows: slice) -> Tensor:
        zeros = unpack(stored, self.bits, 1)[:, rows]
        return zeros + 1 & (1 << self.bits) - 1 if self.zeros_less_one else zeros


class Gptq(Packed):
    """Of 2, 4 or 8 bits, with inputs in any order.

    Raises:
        UnsupportedModel: it is packed in another way, or not all layers alike.
    """

    reader = GptqReader

    def __init__(self, stored: Mapping[str, Any]) -> None:
        super().__init__(stored)
        self.format = stored.get("checkpoint_format") or "gptq"
        if self.format not in FORMATS or stored.get("is_marlin_format"):
            raise UnsupportedModel(
                f"GPTQ weights in the format {self.format if self.format not in FORMATS else 'marlin'} cannot be read; "
                f"use a checkpoint in {' or '.join(FORMATS)}"
            )
        if stored.get("dynamic"):
            raise UnsupportedModel("GPTQ weights whose layers differ (`dynamic` in config.json) cannot be read")

    def open(self, reader: WeightReader) -> WeightReader:
        return GptqReader(reader, self.bits, self.group_size, zeros_less_one=self.format == "gptq")
