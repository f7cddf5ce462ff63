"""Reads and checks the header of a safetensors file; the format is described in the safetensors repository's README."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgi_core.errors import WeightsError

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    dtype: str  #: "BF16", a key of DTYPE_BITS
    shape: tuple[int, ...]
    offset: int  #: bytes from the start of the file
    size: int  #: bytes


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, each inside the file and as long as its shape says.

    Raises:
        WeightsError: names the file and what to do.
    """
    file_size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > MAX_HEADER_BYTES:
            raise WeightsError(f"{path} is not a safetensors file; download it again")
        if 8 + length > file_size:
            raise WeightsError(f"{path} is truncated: its header alone has {length} bytes; download it again")
        header = _parse(path, file.read(length))
    return {
        name: _stored_tensor(path, name, entry, 8 + length, file_size)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} has an unreadable header ({error}); download it again") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path} has a malformed header; download it again")
    return header


def _stored_tensor(path: Path, name: str, entry: Any, start: int, file_size: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)) and begin <= end
        bits = DTYPE_BITS[dtype] * math.prod(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the header entry of {name} is malformed; download the file again") from error
    if not sound or bits != 8 * (end - begin):
        raise WeightsError(f"{path}: {name} is {dtype} {list(shape)} but stored at bytes {begin} to {end}")
    if start + end > file_size:
        missing = start + end - file_size
        raise WeightsError(f"{path} is truncated: {name} ends {missing} bytes after the file; download it again")
    return StoredTensor(dtype, shape, start + begin, end - begin)
