"""One rank that is not the first, as a process: `python -m tgi_core.engine.worker ADDRESS`, started by rank 0's engine.

See `tgi_core.engine.rank_messages` for what is said.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import shutil
import signal
import sys
import threading
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tgi_core.engine.rank_messages import (
    Begin,
    Built,
    Calibrate,
    Calibrated,
    End,
    Failed,
    FromRank,
    Loaded,
    Prepare,
    Run,
    ToRank,
    WarmUp,
    decode_to_rank,
    encode,
    read_frame,
    write_frame,
)
from tgi_core.errors import TGIError

if TYPE_CHECKING:
    from tgi_core.distributed.group import TorchGroup
    from tgi_core.engine.build import Parts
    from tgi_core.runner.base import Handle

log = logging.getLogger(__name__)

IN_FLIGHT = 2  #: steps that the device may be behind, as in the engine


def main() -> int:
    """Follow rank 0 until it says so, or is gone.  Exit status 0: told to; 1: cannot start or go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
    (address,) = sys.argv[1:]
    rank0 = RankZero(*take_pipes(), Path(address.removeprefix("file://")).parent)
    try:
        follow(rank0, address)
    except Exception as error:
        if not isinstance(error, TGIError):
            log.exception("the rank failed")
        rank0.say(Failed(str(error) or repr(error)))
        return 1
    return 0


def take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output for messages; what else is written to standard output goes to standard error."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return orders, answers


class RankZero:
    """Rank 0 as its followers see it.  Its end ends this process, whatever that waits for.

    Args:
        folder: in which ranks meet, to be removed when rank 0 could not.
    """

    def __init__(self, orders: IO[bytes], answers: IO[bytes], folder: Path) -> None:
        self._orders, self._answers, self._folder = orders, answers, folder
        self._received: queue.SimpleQueue[ToRank] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def next_order(self) -> ToRank:
        """Wait for it."""
        return self._received.get()

    def say(self, message: FromRank) -> None:
        """Answer, if anybody listens."""
        try:
            write_frame(self._answers, encode(message))
        except OSError:
            log.debug("rank 0 is gone")

    def _receive(self) -> None:
        while (frame := read_frame(self._orders)) is not None:
            order = decode_to_rank(frame)
            self._received.put(order)
            if isinstance(order, End):
                return
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)


def follow(rank0: RankZero, address: str) -> None:
    """Load this rank's share, then do as rank 0 does.

    Raises:
        TGIError: says what is wrong.
    """
    begin = rank0.next_order()
    if not isinstance(begin, Begin):
        return
    from tgi_core.distributed.group import TorchGroup
    from tgi_core.engine.build import build
    from tgi_core.engine.place import find_place

    group = TorchGroup(begin.rank, begin.size, address)
    place = find_place(begin.config)
    parts = build(begin.config, place, group=group, before_loading=lambda files: rank0.say(Built()))
    rank0.say(Loaded())
    gc.freeze()  # as in the engine's process
    obey(rank0, parts)
    leave(parts, group)


def obey(rank0: RankZero, parts: Parts) -> None:
    """Take orders until the last one."""
    from tgi_core.engine.calibration import calibration

    in_flight: deque[Handle] = deque()
    while not isinstance(order := rank0.next_order(), End | Calibrated):
        if isinstance(order, Run):
            in_flight.append(parts.runner.submit(order.plan))
        elif isinstance(order, WarmUp):
            parts.runner.warm_up(order.info, lambda fraction, detail: None)
        elif isinstance(order, Prepare):
            parts.runner.prepare()
        elif isinstance(order, Calibrate):
            with calibration(parts):
                obey(rank0, parts)
        while len(in_flight) >= IN_FLIGHT:
            in_flight.popleft().result()  # a fault of this rank's device is raised here


def leave(parts: Parts, group: TorchGroup) -> None:
    """Part from the others, who do the same."""
    parts.backend.synchronize()
    parts.runner.close()
    group.leave()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # libraries of collectives may wait, on the way out, for ranks that are gone
