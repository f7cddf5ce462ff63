"""What rank 0 and the other ranks say to each other: msgpack of typed structs in frames, never pickle.

A rank is started with the address of the group.  Rank 0 writes to its standard input, whose end is the sign that rank 0
is gone, and reads its standard output.
"""

from __future__ import annotations

from typing import IO

import msgspec

from tgi_core.config import EngineConfig
from tgi_core.stats import EngineInfo
from tgi_core.step import StepPlan

LENGTH_BYTES = 4  #: of a frame's length, little-endian, in front of it


class Begin(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank 0: who you are, and which model to load."""

    config: EngineConfig
    rank: int
    size: int


class Run(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank 0: run this step, as I do."""

    plan: StepPlan


class WarmUp(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank 0: make ready for all shapes that steps of this engine may have, as I do."""

    info: EngineInfo


class Prepare(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank 0: prepare for later steps, as I do."""


class Calibrate(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank 0: look at what layers are given in the steps that follow, until `Calibrated`."""


class Calibrated(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank 0: load the weights again, with that in mind."""


class End(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank 0: no step follows."""


class Built(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank: about to meet the others."""


class Loaded(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank: steps are welcome."""


class Failed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank: cannot go on, and is about to exit."""

    error: str  #: for a person


ToRank = Begin | Run | WarmUp | Prepare | Calibrate | Calibrated | End
FromRank = Built | Loaded | Failed

encode = msgspec.msgpack.Encoder().encode
decode_to_rank = msgspec.msgpack.Decoder(ToRank).decode
decode_from_rank = msgspec.msgpack.Decoder(FromRank).decode


def write_frame(pipe: IO[bytes], content: bytes) -> None:
    """Send one message.

    Raises:
        OSError: nobody reads.
    """
    pipe.write(len(content).to_bytes(LENGTH_BYTES, "little") + content)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """Wait for one message; None at the end, which may be in the middle of one."""
    header = pipe.read(LENGTH_BYTES)
    length = int.from_bytes(header, "little")
    content = pipe.read(length) if len(header) == LENGTH_BYTES else b""
    return content if content and len(content) == length else None
