"""Structured logs: lines for people on a terminal, JSON on request, one writer for all libraries."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import Any

import structlog

LEVELS = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}

MAX_WAITING_LINES = 10_000
MAX_VALUE_CHARACTERS = 2048
FLUSH_S = 0.5


class BackgroundHandler(logging.Handler):
    """Writes in a thread, so that a reader of the log that stalls cannot stall the server; then lines are dropped."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING_LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, or drop it when too many wait."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(record)

    def flush(self) -> None:
        """Wait a moment until all lines are written."""
        give_up = time.monotonic() + FLUSH_S
        while self._lines.unfinished_tasks and time.monotonic() < give_up:
            time.sleep(0.001)

    def _write(self) -> None:
        while True:
            record = self._lines.get()
            self._target.handle(record)
            self._lines.task_done()


def configure(*, json_output: bool, level: str) -> None:
    """Send every log line to standard output, as TGI does; a closed pipe never stops the server."""
    threshold = LEVELS.get(level.lower(), logging.INFO)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _tame,
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json_output
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), pad_event_to=0)
    )
    named: list[Any] = [structlog.processors.EventRenamer("message")] if json_output else []
    stream = logging.StreamHandler(sys.stdout)
    stream.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *named, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [BackgroundHandler(stream)]
    root.setLevel(threshold)
    logging.raiseExceptions = False
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.error").setLevel(max(threshold, logging.WARNING))
    logging.getLogger("uvicorn.access").disabled = True
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        cache_logger_on_first_use=True,
    )


def _tame(logger: Any, name: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep values, which may come from a client, within their line, of bearable length and free of escape codes."""
    for key, value in entry.items():
        if key != "event" and isinstance(value, str) and (len(value) > MAX_VALUE_CHARACTERS or not value.isprintable()):
            entry[key] = repr(value[:MAX_VALUE_CHARACTERS])[1:-1]
    return entry


def flush() -> None:
    """Write what waits, as far as that takes no longer than a moment."""
    for handler in logging.getLogger().handlers:
        handler.flush()
