"""Compiles kernels in other threads, while the device and this thread go on with what there is.

A compiler leaves the interpreter to others for most of the second that a kernel takes; several hold them up more often.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

MOST_AT_ONCE = 4  #: threads; they share the interpreter with the engine's


class StillCompiling(Exception):
    """A kernel is not there yet; to be tried again when `is_done`, or launched where nobody waits for it meanwhile."""

    def __init__(self, is_done: Callable[[], bool]) -> None:
        super().__init__("a kernel is still being compiled")
        self.is_done = is_done


_BESIDE = ContextVar("_BESIDE", default=False)


@contextmanager
def beside() -> Iterator[None]:
    """Where kernels that are not compiled raise StillCompiling, rather than hold up everything."""
    before = _BESIDE.set(True)
    try:
        yield
    finally:
        _BESIDE.reset(before)


def is_beside() -> bool:
    """Whether this is `beside` others that go on."""
    return _BESIDE.get()


class Compilations:
    """Of one kernel's variants, by their keys."""

    def __init__(self) -> None:
        self._jobs: dict[object, Future[object]] = {}

    def await_one(self, key: object, compile: Callable[[], object]) -> None:
        """Return when nothing but launching the kernel is left, which also tells what is wrong with it.

        Args:
            compile: leaves the compiled kernel where a launch finds it.

        Raises:
            StillCompiling: `beside`.
        """
        job = self._jobs.get(key)
        if job is None and is_beside():
            job = self._jobs[key] = _submit(compile)
        if job is None:
            return
        if is_beside() and not job.done():
            raise StillCompiling(job.done)
        del self._jobs[key]
        job.exception()  # waits


_running: list[Future[object]] = []


def _submit(compile: Callable[[], object]) -> Future[object]:
    """Start it, unless too many run: whoever ends the process waits for them."""
    if not _has_room():
        raise StillCompiling(_has_room)
    _running.append(job := _pool().submit(compile))
    return job


def _has_room() -> bool:
    _running[:] = [job for job in _running if not job.done()]
    return len(_running) < _most_at_once()


@cache
def _most_at_once() -> int:
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, min(MOST_AT_ONCE, len(cpus) // 2))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_most_at_once(), thread_name_prefix="compile")
