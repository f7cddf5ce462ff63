"""Progress of loading: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import structlog

from tgi_core.messages import Loading

if TYPE_CHECKING:
    from rich.progress import Progress

log = structlog.get_logger("tgi.engine")

LINE_EVERY = 0.25  # of a phase


class LoadingProgress:
    """Shows what the engine reports while it loads."""

    def __init__(self) -> None:
        self._phase = ""
        self._next_line = 0.0
        self._bar: Progress | None = None

    def show(self, loading: Loading) -> None:
        """Show one report."""
        if sys.stderr.isatty():
            self._show_bar(loading)
            return
        if loading.phase != self._phase:
            self._phase, self._next_line = loading.phase, 0.0
        if loading.fraction >= self._next_line:
            self._next_line = loading.fraction + LINE_EVERY
            percent = round(100 * loading.fraction)
            log.info("Loading", phase=loading.phase, percent=percent, detail=loading.detail)

    def _show_bar(self, loading: Loading) -> None:
        from rich.console import Console
        from rich.progress import Progress

        if self._bar is None:
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
        if loading.phase != self._phase:
            self._phase = loading.phase
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(loading.phase, total=1.0)
        self._bar.update(self._bar.task_ids[0], completed=loading.fraction, description=f"{loading.phase}")

    def end(self) -> None:
        """Loading is over, well or not."""
        self._phase = ""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
