"""What the front and the engine process say to each other: msgpack of typed structs, never pickle.

The front writes one `EngineConfig` as a line of JSON to the engine's standard input and keeps that pipe open: its end
is the sign that the front is gone.  All else goes over two `ipc://` sockets in a folder that only the owner can open:
`inbox` (front PUSH -> engine PULL) and `outbox` (engine PUSH -> front PULL), both bound by the front.  The engine
removes the folder once it is ready.
"""

from __future__ import annotations

import msgspec

from tgi_core.request import Request, RequestOutput
from tgi_core.stats import EngineInfo, StepStats


class Add(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Front: run this request."""

    request: Request


class Abort(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Front: end these requests; unknown and finished ids are ignored.  No output follows for them."""

    request_ids: list[int]


class Shutdown(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Front: exit now with status 0."""


class Loading(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Engine: progress before it is ready."""

    phase: str  #: "import" | "download" | "weights" | "warmup" | "recording"
    fraction: float  #: 0 .. 1 of this phase
    detail: str = ""


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Engine: requests are welcome."""

    info: EngineInfo


class StepDone(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Engine: everything that one step brought."""

    outputs: list[RequestOutput]
    stats: StepStats


class Heartbeat(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Engine: alive; sent every half second by a thread that never waits on a step."""

    steps: int  #: finished since start
    step_started_at: float  #: time.monotonic() of the running step, 0 when idle


class Failed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Engine: cannot start or go on, and is about to exit."""

    error: str  #: for a person
    kind: str  #: class name of the error, of `tgi_core.errors` where it is one of ours


ToEngine = Add | Abort | Shutdown
FromEngine = Loading | Ready | StepDone | Heartbeat | Failed

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
