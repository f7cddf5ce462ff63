"""One run of the engine process, as the front holds it: its sockets, its standard input and its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import msgspec
import zmq

from tgi_core.config import EngineConfig
from tgi_core.messages import FromEngine, ToEngine, decode_from_engine, encode

ENGINE_MODULE = "tgi_core.engine.process"
_LONGEST_SOCKET_PATH = 90  # bytes; the kernel takes 107 for folder and name


class EngineProcess:
    """A started engine.  The folder of its sockets can be opened by this user only."""

    def __init__(self, config: EngineConfig, module: str = ENGINE_MODULE) -> None:
        folder = tempfile.mkdtemp(prefix="tgi-")  # mode 0700
        if len(os.fsencode(folder)) > _LONGEST_SOCKET_PATH:
            os.rmdir(folder)
            folder = tempfile.mkdtemp(prefix="tgi-", dir="/tmp")
        self.folder = folder
        self._context = zmq.Context()
        self._inbox = self._bind(zmq.PUSH, "inbox")
        self._outbox = self._bind(zmq.PULL, "outbox")
        # a session of its own: Ctrl-C reaches the front alone, which drains before it stops the engine
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, folder], stdin=subprocess.PIPE, start_new_session=True
        )
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.write(msgspec.json.encode(config) + b"\n")
                pipe.flush()

    def _bind(self, kind: int, name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.bind(f"ipc://{self.folder}/{name}")
        return socket

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def fileno(self) -> int:
        """Descriptor that becomes readable, once, when messages arrive: read until `receive` says None."""
        return int(self._outbox.getsockopt(zmq.FD))

    def send(self, message: ToEngine) -> bool:
        """Hand a message over without waiting; False when no engine listens any more."""
        try:
            self._inbox.send(encode(message), zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def receive(self) -> FromEngine | None:
        """The next message, or None when there is none now."""
        try:
            frame = self._outbox.recv(zmq.NOBLOCK)
        except zmq.ZMQError:
            return None
        return decode_from_engine(frame)

    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def how_it_ended(self) -> str:
        """The end in words."""
        code = self._process.poll()
        if code is None:
            return "is running"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with status {code}"

    def kill(self) -> None:
        """End it now, frozen or not."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def abandon(self) -> None:
        """Kill it and remove its sockets, without tidying up this process, which is about to end."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self, patience_s: float = 0.0) -> None:
        """Close its standard input, wait `patience_s`, kill it, and remove the sockets."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._inbox.close()
        self._outbox.close()
        self._context.term()
        shutil.rmtree(self.folder, ignore_errors=True)
