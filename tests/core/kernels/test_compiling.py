"""Kernels that are compiled while others go on."""

import subprocess
import sys
import threading
import time

import pytest

from tgi_core.kernels import compiling


@pytest.fixture
def compiler():
    """What takes until it is told to be done; never twice for a key."""

    class Compiler:
        def __init__(self):
            self.may_end, self.threads = threading.Event(), []

        def __call__(self):
            self.threads.append(threading.current_thread())
            assert self.may_end.wait(60)

    compiler = Compiler()
    yield compiler
    compiler.may_end.set()


def wait_for(condition):
    """Until it holds, for a minute at most."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("a minute was not enough")


@pytest.fixture
def one_thread(monkeypatch):
    """Kernels are compiled one after the other."""
    for thread in tuple(compiling._threads):
        thread.join(60)
    monkeypatch.setattr(compiling, "_most_at_once", lambda: 1)


def test_what_nobody_was_ahead_of_is_left_to_the_launch(compiler):
    assert compiling.Compilations().may_launch("a", compiler)
    assert not compiler.threads


def test_ahead_all_kernels_are_compiled_in_other_threads_each_once_and_left_out(compiler):
    kernels = compiling.Compilations()
    with compiling.ahead() as first:
        assert not any(kernels.may_launch(key, compiler) for key in "aab")
    with compiling.ahead() as second:
        assert not any(kernels.may_launch(key, compiler) for key in "ab")
    assert len(first.jobs) == 3
    assert not first.is_done()
    compiler.may_end.set()
    wait_for(lambda: first.is_done() and second.is_done())
    with compiling.ahead() as third:
        assert not kernels.may_launch("a", compiler)  # still not launched
    assert not third.jobs
    assert all(kernels.may_launch(key, compiler) for key in "ab")
    assert len(compiler.threads) == 2
    assert threading.current_thread() not in compiler.threads


def test_kernels_are_launched_until_one_is_missing(compiler):
    kernels = compiling.Compilations()
    with compiling.ahead(launches=True) as missing:
        assert not compiling.leaves_out()
        assert not kernels.may_launch("a", compiler)
        assert compiling.leaves_out()
    compiler.may_end.set()
    wait_for(missing.is_done)
    with compiling.ahead(launches=True) as none:
        assert kernels.may_launch("a", compiler)
        assert not compiling.leaves_out()
    assert not none.leaves_out
    assert not compiling.leaves_out()


def test_who_has_to_go_on_waits_for_the_one_that_is_compiled(compiler, one_thread):
    kernels, done = compiling.Compilations(), []
    with compiling.ahead():
        kernels.may_launch("a", lambda: done.append(compiler()))
    wait_for(lambda: compiler.threads)
    threading.Timer(0.05, compiler.may_end.set).start()
    assert kernels.may_launch("a", compiler)
    assert done == [None]


def test_who_has_to_go_on_waits_for_none_that_nobody_has_begun(compiler, one_thread):
    kernels = compiling.Compilations()
    with compiling.ahead() as missing:
        assert not any(kernels.may_launch(key, compiler) for key in "ab")
    wait_for(lambda: compiler.threads)
    assert kernels.may_launch("b", compiler)
    assert not missing.is_done()
    compiler.may_end.set()
    assert kernels.may_launch("a", compiler)
    assert len(compiler.threads) == 1


def test_what_somebody_waits_for_comes_first(compiler, one_thread):
    kernels, order = compiling.Compilations(), []
    with compiling.ahead():
        kernels.may_launch("first", compiler)
        wait_for(lambda: compiler.threads)
        for key in "abc":
            kernels.may_launch(key, lambda key=key: order.append(key))
    with compiling.ahead(urgent=True) as urgent:
        kernels.may_launch("c", order.append)
    compiler.may_end.set()
    wait_for(urgent.is_done)
    assert order[0] == "c"
    assert all(kernels.may_launch(key, compiler) for key in "abc")


def test_what_nobody_wants_any_more_is_compiled_when_somebody_does(compiler, one_thread):
    kernels = compiling.Compilations()
    with compiling.ahead():
        kernels.may_launch("first", compiler)
    wait_for(lambda: compiler.threads)
    with compiling.ahead() as missing:
        kernels.may_launch("a", compiler)
    missing.give_up()
    with compiling.ahead() as again:
        assert not kernels.may_launch("a", compiler)
    assert not again.is_done()
    compiler.may_end.set()
    wait_for(again.is_done)
    assert len(compiler.threads) == 2
    assert all(kernels.may_launch(key, compiler) for key in ("first", "a"))


def test_a_failure_is_left_to_the_launch(compiler):
    kernels = compiling.Compilations()
    with compiling.ahead() as missing:
        kernels.may_launch("a", lambda: 1 / bool(compiler()))
    compiler.may_end.set()
    wait_for(missing.is_done)
    assert kernels.may_launch("a", compiler)


def test_an_error_ends_being_ahead():
    with pytest.raises(ZeroDivisionError), compiling.ahead():
        assert compiling.leaves_out() / 0
    assert not compiling.leaves_out()


def test_a_process_that_ends_waits_for_kernels_only_that_are_begun():
    code = """
import time
from tgi_core.kernels import compiling
kernels = compiling.Compilations()
with compiling.ahead():
    for key in range(2000):
        kernels.may_launch(key, lambda: time.sleep(1))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
