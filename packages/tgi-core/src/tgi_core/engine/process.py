"""The engine as a process: `python -m tgi_core.engine.process SOCKET_DIR`, started and watched by a front.

See `tgi_core.messages` for what is said over which channel.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq

from tgi_core import messages
from tgi_core.config import EngineConfig
from tgi_core.errors import RankLost, TGIError
from tgi_core.request import Request, RequestOutput

if TYPE_CHECKING:
    from tgi_core.engine.engine import Engine

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
IDLE_POLL_MS = 1000
QUIET_MS = 100  #: without work, after which there is time to prepare for more
#: before the first request, where it is known what requests will want: many kernels are compiled then
PREPARE_S = 3.0
PROGRESS_S = 0.2
LAST_WORDS_S = 0.2  #: in which the last message leaves
PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Serve the front until it says so, or is gone.  Exit status 0: told to; 1: cannot start or go on."""
    socket_dir = Path((arguments or sys.argv[1:])[0])
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineConfig)
    threading.Thread(target=_exit_with_front, args=(sys.stdin.fileno(), socket_dir), daemon=True).start()
    context = zmq.Context()
    outbox = context.socket(zmq.PUSH)
    outbox.connect(f"ipc://{socket_dir}/outbox")
    inbox = context.socket(zmq.PULL)
    inbox.connect(f"ipc://{socket_dir}/inbox")
    pulse = Pulse(context, f"ipc://{socket_dir}/outbox")
    process = EngineProcess(inbox, outbox, pulse.give_up)
    pulse.start()
    try:
        process.load(config)
        shutil.rmtree(socket_dir, ignore_errors=True)  # connected long ago; so no kind of death leaves it behind
        process.announce()
        process.serve(pulse)
        process.engine.close()
    except Exception as error:
        if not isinstance(error, TGIError):
            log.exception("the engine failed")
        outbox.send(messages.encode(messages.Failed(str(error) or repr(error), type(error).__name__)))
        outbox.close(linger=2000)
        return 1
    return 0


class EngineProcess:
    """Moves messages between sockets and engine."""

    def __init__(self, inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes], give_up: Callable[[str], None]) -> None:
        self.inbox, self.outbox, self._give_up = inbox, outbox, give_up
        self.engine: Engine
        self._started_at = self._reported_at = 0.0
        self._patience_ms = QUIET_MS

    def load(self, config: EngineConfig) -> None:
        """Build the engine, telling the front how far it is."""
        self._started_at = time.monotonic()
        self._progress("import", 0.0, "PyTorch")
        # PyTorch reads this when it is imported: huge pages for its allocations, a third more memory bandwidth
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        from tgi_core.engine.engine import Engine

        self.engine = Engine(config, self._progress, give_up=self._give_up)
        self._prepare()
        gc.freeze()  # what was made so far stays: no collection during requests need look at it

    def _prepare(self) -> None:
        started = time.monotonic()
        while self.engine.prepares_ahead and (spent := time.monotonic() - started) < PREPARE_S:
            self._progress("recording", spent / PREPARE_S, "steps")
            if not self.engine.prepare():
                break

    def announce(self) -> None:
        """Tell the front that requests are welcome."""
        load_s = time.monotonic() - self._started_at
        self._send(messages.Ready(msgspec.structs.replace(self.engine.info, load_s=load_s)))

    def serve(self, pulse: Pulse) -> None:
        """Step while there is work, prepare for more or wait for messages otherwise."""
        while self._receive(wait=not self.engine.has_work):
            if self.engine.has_work:
                self._patience_ms = QUIET_MS
                pulse.step_started_at = time.monotonic()
                outputs = self.engine.step()
                pulse.step_started_at = 0.0
                pulse.steps += 1
                self._send(messages.StepDone(outputs, self.engine.stats))
            else:
                self.engine.check()

    def _receive(self, *, wait: bool) -> bool:
        """Take all messages that are there; False when told to end."""
        if wait and not self.inbox.poll(self._patience_ms):
            self._patience_ms = QUIET_MS if self.engine.prepare() else IDLE_POLL_MS
            return True
        with contextlib.suppress(zmq.Again):
            while True:
                frame = self.inbox.recv(zmq.NOBLOCK)
                try:
                    message = messages.decode_to_engine(frame)
                except msgspec.MsgspecError:
                    log.exception("a message of %d bytes could not be read and was dropped", len(frame))
                    continue
                if isinstance(message, messages.Shutdown):
                    return False
                self._handle(message)
        return True

    def _handle(self, message: messages.Add | messages.Abort) -> None:
        if isinstance(message, messages.Abort):
            for request_id in message.request_ids:
                self.engine.abort(request_id)
            return
        try:
            self.engine.add(message.request)
        except Exception as error:
            if not isinstance(error, TGIError):
                log.exception("a request could not be added")
            self._refuse(message.request, str(error))

    def _refuse(self, request: Request, error: str) -> None:
        output = RequestOutput(request_id=request.id, finish_reason="error", error=error)
        self._send(messages.StepDone([output], self.engine.stats))

    def _progress(self, phase: str, fraction: float, detail: str) -> None:
        if fraction in (0.0, 1.0) or time.monotonic() - self._reported_at >= PROGRESS_S:
            self._reported_at = time.monotonic()
            self._send(messages.Loading(phase, fraction, detail))

    def _send(self, message: messages.FromEngine) -> None:
        self.outbox.send(messages.encode(message))


class Pulse(threading.Thread):
    """Says every half second that the process lives, and since when the current step runs.

    Also ends it where the thread that serves cannot.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        super().__init__(daemon=True)
        self._context, self._address = context, address
        self.steps = 0
        self.step_started_at = 0.0
        self._last_words: messages.Failed | None = None
        self._wake = threading.Event()

    def give_up(self, why: str) -> None:
        """End the process, which waits for a rank that is gone."""
        self._last_words = messages.Failed(why, RankLost.__name__)
        self._wake.set()

    def run(self) -> None:
        socket = self._context.socket(zmq.PUSH)
        socket.connect(self._address)
        while self._last_words is None:
            socket.send(messages.encode(messages.Heartbeat(self.steps, self.step_started_at)))
            self._wake.wait(HEARTBEAT_S)
        socket.send(messages.encode(self._last_words))
        exit_now(1)


def exit_now(status: int) -> None:
    """End this process without tidying up: on their way out, libraries may wait for ranks that are gone."""
    if status:
        time.sleep(LAST_WORDS_S)
    sys.stderr.flush()
    os._exit(status)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the front dies (Linux), should the end of standard input go unnoticed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _exit_with_front(descriptor: int, socket_dir: Path) -> None:
    """Wait for the end of standard input; then nobody is left to remove the sockets."""
    while os.read(descriptor, 1):
        pass
    shutil.rmtree(socket_dir, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    exit_now(main())
