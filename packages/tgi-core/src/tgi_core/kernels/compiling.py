"""Compiles kernels in other threads: all that a step wants side by side, while the device and this thread go on.

A compiler leaves the interpreter to others for most of the second that a kernel takes; several hold them up more often.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TypeAlias

MOST_AT_ONCE = 4  #: threads; they share the interpreter with the engine's

Compile: TypeAlias = Callable[[], object]


class Missing:
    """What a step that is taken `ahead` misses; arguments as its."""

    def __init__(self, *, urgent: bool, launches: bool) -> None:
        self.urgent, self._launches = urgent, launches
        self.jobs: list[Future[None]] = []  #: of kernels that were not there

    @property
    def leaves_out(self) -> bool:
        """Whether kernels are not launched."""
        return bool(self.jobs) or not self._launches

    def is_done(self) -> bool:
        """Whether all kernels are there."""
        return all(job.done() for job in self.jobs)

    def give_up(self) -> None:
        """Nobody wants those any more that no compiler has begun."""
        for job in self.jobs:
            job.cancel()


_AHEAD: ContextVar[Missing | None] = ContextVar("_AHEAD", default=None)


@contextmanager
def ahead(*, urgent: bool = False, launches: bool = False) -> Iterator[Missing]:
    """Where a step is taken for the sake of its kernels: those that are missing are given to compilers, and all are
    left out, so that numbers mean nothing (and indices have to, see `launch.indices`).

    Args:
        urgent: somebody waits for this step, so its kernels are compiled before others'.
        launches: launch kernels until one is missing; if none is, the step has been taken.
    """
    missing = Missing(urgent=urgent, launches=launches)
    before = _AHEAD.set(missing)
    try:
        yield missing
    finally:
        _AHEAD.reset(before)


def is_ahead() -> bool:
    """Whether kernels may be left out."""
    return _AHEAD.get() is not None


def leaves_out() -> bool:
    """Whether this is `ahead`, and a kernel that is there is not to be launched."""
    missing = _AHEAD.get()
    return missing is not None and missing.leaves_out


class Compilations:
    """Of one kernel's variants, by their keys."""

    def __init__(self) -> None:
        self._jobs: dict[object, Future[None]] = {}

    def may_launch(self, key: object, compile: Compile) -> bool:
        """Whether to launch a kernel, which compiles it if nobody has, and tells what is wrong with it.

        A kernel that is being compiled is waited for; where it is missing `ahead`, it is left out.

        Args:
            compile: leaves the compiled kernel where a launch finds it.
        """
        job, missing = self._jobs.get(key), _AHEAD.get()
        if missing is not None:
            if job is None or job.cancelled():
                job = self._jobs[key] = _submit(compile)
            if not job.done():
                missing.jobs.append(job)
                if missing.urgent:
                    _put_first(job)
            if missing.leaves_out:
                return False
        if job is not None:
            del self._jobs[key]
            if not job.cancel():  # somebody has begun
                job.exception()  # waits
        return True


_waiting: OrderedDict[Future[None], Compile] = OrderedDict()
_threads: set[threading.Thread] = set()
_lock = threading.Lock()  #: of both


def _submit(compile: Compile) -> Future[None]:
    job: Future[None] = Future()
    with _lock:
        if len(_threads) < _most_at_once():
            thread = threading.Thread(target=_compile_all, name="compile")
            thread.start()
            _threads.add(thread)
        _waiting[job] = compile
    return job


def _put_first(job: Future[None]) -> None:
    with _lock:
        if job in _waiting:
            _waiting.move_to_end(job, last=False)


def _compile_all() -> None:
    while threading.main_thread().is_alive():  # a process that ends waits for kernels only that are begun
        with _lock:
            if not _waiting:
                _threads.remove(threading.current_thread())
                return
            job, compile = _waiting.popitem(last=False)
        if job.set_running_or_notify_cancel():
            try:
                compile()
            except BaseException as error:
                job.set_exception(error)
            else:
                job.set_result(None)


@cache
def _most_at_once() -> int:
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, min(MOST_AT_ONCE, len(cpus) // 2))
