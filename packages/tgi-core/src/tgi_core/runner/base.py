"""The boundary between scheduling and a device: plans go in, results come back, in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from tgi_core.stats import EngineInfo
from tgi_core.step import StepPlan, StepResult


class Handle(ABC):
    """A submitted step."""

    @abstractmethod
    def done(self) -> bool:
        """Whether `result` returns without waiting."""

    @abstractmethod
    def result(self) -> StepResult:
        """Wait for the device and return host values.  A device fault is raised here."""


class FinishedHandle(Handle):
    """A step of a device that works while it is called."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def done(self) -> bool:
        return True

    def result(self) -> StepResult:
        return self._result


class Runner(ABC):
    """Executes steps in the order of submission; holds the model and all per-slot state."""

    layer_by_layer = False  #: while it is set, no step is recorded or repeated

    @abstractmethod
    def submit(self, plan: StepPlan) -> Handle:
        """Start a step.  Results of earlier steps may still be on the way."""

    def warm_up(self, info: EngineInfo, progress: Callable[[float, str], None]) -> None:  # noqa: B027 - most need none
        """Make ready for every shape that steps may have, before the first request.

        Args:
            progress: told the fraction that is done, and what comes next.
        """

    def prepare(self) -> bool:
        """Get ready for steps like those before, while there is nothing else to do; False if that is done."""
        return False

    def close(self) -> None:  # noqa: B027 - most keep nothing of the kind
        """Forget what was recorded.  No step follows."""
