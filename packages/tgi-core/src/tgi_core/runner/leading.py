"""The runner of rank 0: every other rank is told each plan before rank 0 runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from tgi_core.runner.base import Handle, Runner
from tgi_core.stats import EngineInfo
from tgi_core.step import StepPlan, StepResult


class LeadingRunner(Runner):
    """Runs what another runner does, on all ranks at the same time.

    Args:
        tell: sends a plan to the other ranks, with what the engine is that they warm up for it, or with None that they
            prepare; does not wait for them.
        waiting: around all that may wait for other ranks; raises what became of them in place of other errors.
    """

    def __init__(
        self,
        own: Runner,
        tell: Callable[[StepPlan | EngineInfo | None], None],
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.own, self._tell, self._waiting = own, tell, waiting

    def submit(self, plan: StepPlan) -> Handle:
        with self._waiting():
            self._tell(plan)
            return _LedHandle(self.own.submit(plan), self._waiting)

    def warm_up(self, info: EngineInfo, progress: Callable[[float, str], None]) -> None:
        with self._waiting():
            self._tell(info)
            self.own.warm_up(info, progress)

    def prepare(self) -> bool:
        with self._waiting():
            self._tell(None)
            return self.own.prepare()

    def close(self) -> None:
        self.own.close()


class _LedHandle(Handle):
    def __init__(self, own: Handle, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        self._own, self._waiting = own, waiting

    def done(self) -> bool:
        return self._own.done()

    def result(self) -> StepResult:
        with self._waiting():
            return self._own.result()
