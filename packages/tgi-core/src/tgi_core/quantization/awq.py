"""AWQ checkpoints (arXiv 2306.00978), as AutoAWQ writes them for matrix products ("gemm")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tgi_core.errors import UnsupportedModel
from tgi_core.quantization.packed import WORD_BITS, Packed, PackedReader, unpack

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  #: the output, of eight, that each four bits of a word belong to
PLACES = tuple(sorted(range(len(ORDER)), key=ORDER.__getitem__))  #: of outputs in a word
VERSION = "gemm"


class AwqReader(PackedReader):
    """Levels are packed along outputs, as zeros are: [N, M / 8]."""

    known_bits = (4,)

    def inputs_and_outputs(self, stored: tuple[int, ...]) -> tuple[int, int]:
        return stored[0], stored[1] * WORD_BITS // self.bits

    def levels(self, stored: Tensor, rows: slice) -> Tensor:
        words = slice(rows.start // len(ORDER), -(-rows.stop // len(ORDER)))
        found = unpack(stored[:, words], self.bits, 1)
        in_order = found.view(len(found), -1, len(ORDER))[:, :, PLACES].flatten(1)
        return in_order[:, rows.start - words.start * len(ORDER) :][:, : rows.stop - rows.start]

    def zeros(self, stored: Tensor, rows: slice) -> Tensor:
        return self.levels(stored, rows)


class Awq(Packed):
    """Of 4 bits, with a zero for each group.

    Raises:
        UnsupportedModel: it is packed in another way.
    """

    reader = AwqReader

    def __init__(self, stored: Mapping[str, Any]) -> None:
        named = {"bits": stored.get("w_bit"), "group_size": stored.get("q_group_size")}  # in files of AWQ's authors
        super().__init__({**{key: value for key, value in named.items() if value is not None}, **stored})
        version = str(stored.get("version", VERSION)).lower()
        if version != VERSION:
            raise UnsupportedModel(
                f"AWQ weights of version {version!r} cannot be read; use a checkpoint of {VERSION!r}"
            )
