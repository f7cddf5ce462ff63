"""Reads and checks the header of a GGUF file: metadata and where each tensor lies.

The `gguf` library takes seconds for the arrays of a vocabulary and trusts every count in the file.  This reader
takes a tenth of a second and checks each count and length against the bytes that are left before it believes them.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgi_core.errors import WeightsError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
MIN_PAIR_BYTES = 8 + 1 + 4 + 1  # key length, key, type, value
MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # name length, name, dimensions, one dimension, type, offset


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor lies."""

    kind: int  #: a `gguf.GGMLQuantizationType`
    shape: tuple[int, ...]  #: as PyTorch writes it, the fastest dimension last
    offset: int  #: bytes from the start of the file
    size: int  #: bytes


@dataclass(frozen=True)
class GGUFHeader:
    """What a file says about itself; every tensor lies inside the file."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


class Malformed(Exception):
    """The bytes contradict the format."""


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read the header.

    Raises:
        WeightsError: names the file and what is wrong.
    """
    if path.stat().st_size < len(MAGIC):
        raise WeightsError(f"{path} is empty; download it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Cursor(data).header()
        except Malformed as error:
            raise WeightsError(f"{path} is not a usable GGUF file: {error}; download it again") from error


class _Cursor:
    """A position in the file that never passes its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0

    def header(self) -> GGUFHeader:
        if self.bytes(4) != MAGIC:
            raise Malformed("it does not start with GGUF")
        version = self.scalar("I")
        if version not in VERSIONS:
            raise Malformed(f"version {version} is not one of {VERSIONS}")
        tensor_count = self.count("tensors", MIN_TENSOR_BYTES)
        pair_count = self.count("metadata pairs", MIN_PAIR_BYTES)
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self.string()
            if key in metadata:
                raise Malformed(f"{key!r} stands there twice")
            metadata[key] = self.value(self.scalar("I"))
        return GGUFHeader(metadata, self.tensors(tensor_count, metadata.get("general.alignment", 32)))

    def tensors(self, count: int, alignment: Any) -> dict[str, GGUFTensor]:
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise Malformed(f"alignment {alignment!r} is not a multiple of 8")
        infos = [self.tensor_info() for _ in range(count)]
        start = math.ceil(self.at / alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, kind, shape, offset in infos:
            size = _tensor_bytes(name, kind, shape)
            if offset % alignment or start + offset + size > self.size:
                raise Malformed(f"{name} does not lie inside the file (truncated?)")
            if name in tensors:
                raise Malformed(f"{name} stands there twice")
            tensors[name] = GGUFTensor(kind, shape, start + offset, size)
        return tensors

    def tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.string()
        dimensions = self.scalar("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise Malformed(f"{name} has {dimensions} dimensions")
        shape = tuple(reversed([self.scalar("Q") for _ in range(dimensions)]))
        return name, self.scalar("I"), shape, self.scalar("Q")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise Malformed(f"a value has the unknown type {kind}")
        return self.scalar(SCALARS[kind])

    def array(self) -> list[Any]:
        kind = self.scalar("I")
        if kind == STRING:
            return [self.string() for _ in range(self.count("strings", 8))]
        if kind not in SCALARS:
            raise Malformed(f"an array has elements of type {kind}")
        code = SCALARS[kind]
        width = struct.calcsize("<" + code)
        count = self.count("elements", width)
        return list(struct.unpack(f"<{count}{code}", self.bytes(count * width)))

    def count(self, what: str, least_bytes: int) -> int:
        """A count of things of which each takes at least so many bytes."""
        count = int(self.scalar("Q"))
        if count > (self.size - self.at) // least_bytes:
            raise Malformed(f"{count} {what} do not fit into the file")
        return count

    def string(self) -> str:
        length = self.scalar("Q")
        return self.bytes(length).decode("utf-8", errors="replace")

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.bytes(struct.calcsize("<" + code)))[0]

    def bytes(self, length: int) -> bytes:
        if length > self.size - self.at:
            raise Malformed("the header goes on after the end of the file (truncated?)")
        self.at += length
        return self.data[self.at - length : self.at]


def _tensor_bytes(name: str, kind: int, shape: tuple[int, ...]) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise Malformed(f"{name} has the unknown number format {kind}") from error
    if shape[-1] % block or 0 in shape:
        raise Malformed(f"{name} {list(shape)} is not made of blocks of {block}")
    return math.prod(shape) // block * block_bytes
