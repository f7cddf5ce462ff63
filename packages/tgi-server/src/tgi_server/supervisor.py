"""Keeps one engine process alive and knows at any moment whether it can serve."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from tgi_core.messages import Failed, FromEngine, Heartbeat, Loading, Ready, Shutdown, StepDone
from tgi_core.stats import EngineInfo, StepStats
from tgi_server.engine_client import EngineClient
from tgi_server.engine_process import EngineProcess
from tgi_server.progress import LoadingProgress

log = structlog.get_logger("tgi.engine")

TICK_S = 0.1
HEARTBEAT_LIMIT_S = 5.0  # ten beats
FROZEN_KILL_S = 60.0  # no heartbeat for so long: not paused but lost
RESTART_WINDOW_S = 600.0
LONGEST_BACKOFF_S = 60.0
MESSAGES_PER_WAKE = 64  # then other tasks get a turn

EXIT_GAVE_UP = 1
EXIT_CANNOT_START = 3


@dataclass(frozen=True, kw_only=True)
class SupervisorLimits:
    """When to worry and when to give up."""

    step_deadline_s: float
    step_timeout_s: float
    max_restarts: int


class Supervisor:
    """Starts, watches and restarts the engine; `run` returns when it gives up."""

    def __init__(
        self,
        first: EngineProcess,
        spawn: Callable[[], EngineProcess],
        client: EngineClient,
        limits: SupervisorLimits,
    ) -> None:
        self.info: EngineInfo | None = None  #: of the last ready engine; stays while it restarts
        self.loading = Loading("import", 0.0)
        self.restarts = 0
        self.on_ready: Callable[[EngineInfo], None] = lambda info: None
        self.on_step: Callable[[StepStats], None] = lambda stats: None
        self._process = first
        self._spawn = spawn
        self._client = client
        self._limits = limits
        self._state = "loading"  # "loading" | "ready" | "restarting" | "stopped"
        self._heard_at = time.monotonic()
        self._step_started_at = 0.0
        self._failure: Failed | None = None
        self._ends: deque[float] = deque()
        self._stopping = False
        self._progress = LoadingProgress()

    @property
    def state(self) -> str:
        """ "loading" | "ready" | "frozen" | "stuck" | "restarting" | "stopped"."""
        if self._state != "ready":
            return self._state
        if self.heartbeat_age_s > HEARTBEAT_LIMIT_S:
            return "frozen"
        if self.step_age_s > self._limits.step_deadline_s:
            return "stuck"
        return "ready"

    @property
    def heartbeat_age_s(self) -> float:
        """Since the engine was last heard."""
        return time.monotonic() - self._heard_at

    @property
    def step_age_s(self) -> float:
        """Of the running step; 0 when idle."""
        return time.monotonic() - self._step_started_at if self._step_started_at else 0.0

    @property
    def engine_pid(self) -> int:
        """Of the engine process."""
        return self._process.pid

    async def run(self) -> int:
        """Supervise until stopped or hopeless; the exit status for the server."""
        while True:
            cause = await self._watch_one()
            if self._stopping:
                return 0
            if self._failure is not None and self.info is None:
                log.error(self._failure.error, kind=self._failure.kind)
                return EXIT_CANNOT_START
            delay = self._backoff()
            if delay is None:
                log.error("engine failed too often; giving up", cause=cause, restarts=self.restarts)
                return EXIT_GAVE_UP
            log.error("engine ended; restarting", cause=cause, delay_s=delay)
            await asyncio.sleep(delay)
            if self._stopping:
                return 0
            self.restarts += 1
            self._failure = None
            self._step_started_at = 0.0
            self._heard_at = time.monotonic()
            self.loading = Loading("import", 0.0)
            self._process = self._spawn()

    def stop(self, patience_s: float = 2.0) -> None:
        """End the engine; requests still in flight fail."""
        self._stopping = True
        self._progress.end()
        self._state = "stopped"
        self._client.detach("the server is shutting down")
        if self._process.returncode() is None:
            self._process.send(Shutdown())
        self._process.close(patience_s)

    def abandon_engine(self) -> None:
        """End the engine without ceremony, on the way out of this process."""
        self._process.abandon()

    def _backoff(self) -> float | None:
        now = time.monotonic()
        while self._ends and now - self._ends[0] > RESTART_WINDOW_S:
            self._ends.popleft()
        if len(self._ends) >= self._limits.max_restarts:
            return None
        self._ends.append(now)
        return float(min(2.0 ** (len(self._ends) - 1), LONGEST_BACKOFF_S))

    async def _watch_one(self) -> str:
        """Serve one process to its end; why it ended."""
        loop = asyncio.get_running_loop()
        process = self._process
        descriptor = process.fileno()
        loop.add_reader(descriptor, self._drain)
        try:
            while (cause := self._check(process)) is None:
                await asyncio.sleep(TICK_S)
        finally:
            loop.remove_reader(descriptor)
        if not self._stopping:
            await asyncio.sleep(TICK_S)  # its last words may still be on their way
            while (message := process.receive()) is not None:
                self._handle(message)
            cause = self._failure.error if self._failure else cause
            self._progress.end()
            self._state = "restarting"
            self._client.detach(cause)
            process.kill()
            process.close()
        return cause

    def _check(self, process: EngineProcess) -> str | None:
        if self._stopping:
            return "the server is shutting down"
        self._drain()  # so that a pause of this very loop is not taken for the engine's
        if process.returncode() is not None:
            return f"the engine process {process.how_it_ended()}"
        if self._state != "ready":
            return None
        if self.heartbeat_age_s > FROZEN_KILL_S:
            return f"the engine process gave no sign of life for {FROZEN_KILL_S:.0f} s"
        if self.step_age_s > self._limits.step_timeout_s:
            return f"a step took longer than --step-timeout ({self._limits.step_timeout_s:.0f} s)"
        return None

    def _drain(self) -> None:
        process = self._process
        for _ in range(MESSAGES_PER_WAKE):
            message = None if self._stopping else process.receive()
            if message is None:
                return
            self._handle(message)
        asyncio.get_running_loop().call_soon(self._drain)

    def _handle(self, message: FromEngine) -> None:
        self._heard_at = time.monotonic()
        match message:
            case StepDone(outputs, stats):
                self._client.dispatch(outputs)
                self.on_step(stats)
            case Heartbeat(_, step_started_at):
                self._step_started_at = step_started_at
            case Loading():
                self.loading = message
                self._progress.show(message)
            case Ready(info):
                self._progress.end()
                self.info = info
                self._state = "ready"
                self._client.attach(self._process)
                self.on_ready(info)
            case Failed():
                self._progress.end()
                self._failure = message
