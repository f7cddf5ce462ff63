"""The ranks that rank 0's engine starts: one process each, which follows what rank 0 tells it.

Only rank 0 schedules.  It tells the others each plan before it runs it, so all ranks run the same steps in the same
order, and meet in the model's layers.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO

import msgspec
import torch

from tgi_core.config import EngineConfig
from tgi_core.distributed.group import TorchGroup
from tgi_core.engine.rank_messages import (
    Begin,
    Built,
    End,
    Failed,
    FromRank,
    Loaded,
    Prepare,
    Run,
    ToRank,
    WarmUp,
    decode_from_rank,
    encode,
    read_frame,
    write_frame,
)
from tgi_core.errors import RankLost, RanksApart, TGIError
from tgi_core.stats import EngineInfo
from tgi_core.step import StepPlan
from tgi_core.weights.source import ModelFiles

log = logging.getLogger(__name__)

WORKER_MODULE = "tgi_core.engine.worker"
BUILD_PATIENCE_S = 180.0  #: from being told of the model until a rank has built it, imports included
LOAD_PATIENCE_S = 600.0  #: of rank 0, which has loaded its share, for those of the others
STUCK_S = 10.0  #: after the death of a rank that rank 0 may go on waiting for it
NEWS_S = 3.0  #: between what the loss of a rank makes fail here, and hearing of the loss
END_PATIENCE_S = 3.0  #: for ranks that were told to end
LAST_LINES = 20  #: of what a rank wrote, to be shown if it dies


class Ranks:
    """Ranks 1 to `size` - 1 of a group whose rank 0 is this process.

    Args:
        give_up: called from another thread, with what happened, where a rank is gone and rank 0 waits for it in a
            place that it cannot be called back from; must end the process.
    """

    def __init__(self, config: EngineConfig, size: int, give_up: Callable[[str], None]) -> None:
        self._config, self._give_up = config, give_up
        self._folder = tempfile.mkdtemp(prefix="tgi-ranks-")  # mode 0700
        self.group = _LeadingGroup(0, size, f"file://{self._folder}/store", self.waiting)
        self._news = threading.Condition()
        self._lost = ""  #: which rank ended and why, once one did
        self._is_waiting = self._is_closed = self._is_broken = False
        self._members: list[_Member] = []
        try:
            for rank in range(1, size):
                self._members.append(_Member(rank, self.group.address, self._note))
        except OSError:
            self.close()
            raise

    # ---- start ----------------------------------------------------------------------------------------------------

    def begin(self, files: ModelFiles) -> None:
        """Let all ranks build this model, and wait until they are about to join the group.

        Raises:
            RankLost: one cannot, or takes too long.
        """
        found = files.weights[0] if files.weights[0].suffix == ".gguf" else files.folder
        config = msgspec.structs.replace(self._config, model_id=str(found), revision=None)
        for member in self._members:
            self._send(member, Begin(config, member.rank, self.group.size))
        self._wait_for(Built, BUILD_PATIENCE_S)

    def wait_until_loaded(self) -> None:
        """Wait until all ranks have loaded their shares.

        Raises:
            RankLost: one cannot, or takes too long.
        """
        self._wait_for(Loaded, LOAD_PATIENCE_S)

    def _wait_for(self, what: type[FromRank], patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        with self._news:
            while missing := [str(member.rank) for member in self._members if what not in member.said]:
                self._raise_if_lost()
                if not self._news.wait(deadline - time.monotonic()):
                    self._is_broken = True
                    raise RankLost(
                        f"rank {', '.join(missing)} of {self.group.size} did not start within {patience_s:.0f} s; "
                        "its output is in the log; a slow disk or a busy machine may be the reason, then start again"
                    )

    # ---- steps ----------------------------------------------------------------------------------------------------

    def tell(self, order: ToRank) -> None:
        """Send every rank the same.

        Raises:
            RankLost: one is gone.
        """
        frame = encode(order)
        for member in self._members:
            self._send_frame(member, frame)

    def lead(self, what: StepPlan | EngineInfo | None) -> None:
        """Let every rank run a plan, warm up for an engine, or with None prepare for more.

        Raises:
            RankLost: one is gone.
        """
        if isinstance(what, StepPlan):
            self.tell(Run(what))
        else:
            self.tell(WarmUp(what) if what else Prepare())

    def check(self) -> None:
        """Look whether all ranks live.

        Raises:
            RankLost: one is gone.
        """
        with self._news:
            self._raise_if_lost()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around all that may wait for other ranks.

        Raises:
            RankLost: one is gone; in place of what follows from that.
        """
        self.check()
        self._is_waiting = True
        try:
            yield
        except Exception as error:
            self._is_broken = True
            if not isinstance(error, TGIError) or isinstance(error, RanksApart):
                self._blame(error)
            raise
        finally:
            self._is_waiting = False

    def _blame(self, error: Exception) -> None:
        """Raise what became of a rank, if that is behind an error."""
        with self._news:
            if self._news.wait_for(lambda: bool(self._lost), NEWS_S):
                raise RankLost(self._lost) from error

    def _send(self, member: _Member, message: ToRank) -> None:
        self._send_frame(member, encode(message))

    def _send_frame(self, member: _Member, frame: bytes) -> None:
        try:
            member.send(frame)
        except OSError as error:
            self._blame(error)
            raise RankLost(f"rank {member.rank} takes no orders any more ({error})") from error

    # ---- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all ranks."""
        if self._is_closed:
            return
        self._is_closed, in_order = True, self.are_well
        for member in self._members:
            with suppress(OSError):
                member.send(encode(End()))
        deadline = time.monotonic() + (END_PATIENCE_S if in_order else 0.0)
        self.group.leave(in_order=in_order)
        for member in self._members:
            member.close(max(0.0, deadline - time.monotonic()))
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def are_well(self) -> bool:
        """Whether all live and compute the same steps."""
        return not (self._lost or self._is_broken)

    def _note(self, member: _Member, message: FromRank | None) -> None:
        """What a rank says, in a thread of its own; None: it ended."""
        with self._news:
            if isinstance(message, Failed):
                member.error = message.error
            elif message is not None:
                member.said.add(type(message))
            elif not self._is_closed and not self._lost:
                self._lost = f"rank {member.rank} of {self.group.size} {member.how_it_ended()}"
                shutil.rmtree(self._folder, ignore_errors=True)  # now, as this process may end without a `close`
                threading.Thread(target=self._watch, daemon=True).start()
            self._news.notify_all()

    def _watch(self) -> None:
        """See to it that rank 0 does not wait for ever for a rank that is gone."""
        deadline = time.monotonic() + STUCK_S
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if not self._is_waiting or self._is_closed:
                return  # it will look before it waits again
        self._give_up(self._lost)

    def _raise_if_lost(self) -> None:
        if self._lost:
            raise RankLost(self._lost)


class _LeadingGroup(TorchGroup):
    """Rank 0 in a group of processes that it has started."""

    def __init__(self, rank: int, size: int, address: str, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(rank, size, address)
        self._waiting = waiting

    def join(self, collectives: str, device: torch.device, *, in_order: bool = False) -> None:
        with self._waiting():
            super().join(collectives, device, in_order=in_order)


class _Member:
    """One process.

    Args:
        address: of the group.
        note: told, in another thread, of each message, and with None of the end.
    """

    def __init__(self, rank: int, address: str, note: Callable[[_Member, FromRank | None], None]) -> None:
        self.rank, self._note_message = rank, note
        self.said: set[type[FromRank]] = set()
        self.error = ""  #: its own last words
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER_MODULE, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._orders = _opened(self._process.stdin)
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read_lines, self._read_messages)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, frame: bytes) -> None:
        """Hand a message over.

        Raises:
            OSError: it is gone.
        """
        try:
            write_frame(self._orders, frame)
        except ValueError as error:  # closed on this side
            raise BrokenPipeError("its orders are closed") from error

    def how_it_ended(self) -> str:
        """In words, with what it said last."""
        if self.error:
            return f"ended: {self.error}"
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        self._threads[0].join(1.0)
        said = "".join(self._lines).strip()
        return f"{how}; it wrote last:\n{said}" if said else how

    def close(self, patience_s: float) -> None:
        """Wait for its end, or kill it."""
        with suppress(OSError):
            self._orders.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(1.0)

    def _read_lines(self) -> None:
        """Pass on what it writes for people."""
        with _opened(self._process.stderr) as pipe:
            for line in pipe:
                text = line.decode(errors="replace")
                self._lines.append(text)
                sys.stderr.write(f"rank {self.rank}: {text}")

    def _read_messages(self) -> None:
        with _opened(self._process.stdout) as pipe:
            while (frame := read_frame(pipe)) is not None:
                self._note_message(self, decode_from_rank(frame))
        self._note_message(self, None)


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise OSError("the rank has no pipe")
    return pipe


def exit_at_once(why: str) -> None:
    """End this process, whose main thread cannot be called back."""
    log.critical("%s", why)
    os._exit(1)
