"""Kernels that are compiled while others go on."""

import threading
from contextlib import suppress

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


def test_what_nobody_waits_beside_is_left_to_the_launch(compiler):
    compiling.Compilations().await_one("a", compiler)
    assert not compiler.threads


def test_beside_it_is_compiled_once_in_another_thread(compiler):
    kernels = compiling.Compilations()
    with compiling.beside():
        with pytest.raises(compiling.StillCompiling) as first:
            kernels.await_one("a", compiler)
        with pytest.raises(compiling.StillCompiling) as second:
            kernels.await_one("a", compiler)
        assert not first.value.is_done()
        compiler.may_end.set()
        while not (first.value.is_done() and second.value.is_done()):
            pass
        kernels.await_one("a", compiler)
    assert len(compiler.threads) == 1
    assert compiler.threads[0] is not threading.current_thread()


def test_who_has_to_go_on_waits_for_the_one_that_is_compiled(compiler):
    kernels, done = compiling.Compilations(), []
    with compiling.beside(), pytest.raises(compiling.StillCompiling):
        kernels.await_one("a", lambda: done.append(compiler()))
    threading.Timer(0.05, compiler.may_end.set).start()
    kernels.await_one("a", compiler)
    assert done == [None]
    assert len(compiler.threads) == 1


def test_a_failure_is_left_to_the_launch(compiler):
    kernels = compiling.Compilations()
    with compiling.beside(), pytest.raises(compiling.StillCompiling):
        kernels.await_one("a", lambda: 1 / bool(compiler()))
    compiler.may_end.set()
    kernels.await_one("a", compiler)
    assert len(compiler.threads) == 1


def test_only_so_many_are_compiled_at_once(compiler, monkeypatch):
    monkeypatch.setattr(compiling, "_most_at_once", lambda: 1)
    kernels = compiling.Compilations()
    with compiling.beside():
        with pytest.raises(compiling.StillCompiling):
            kernels.await_one("a", compiler)
        with pytest.raises(compiling.StillCompiling) as full:
            kernels.await_one("b", compiler)
        assert not full.value.is_done()
        compiler.may_end.set()
        while not full.value.is_done():
            pass
        with suppress(compiling.StillCompiling):
            kernels.await_one("b", compiler)
    kernels.await_one("b", compiler)
    assert len(compiler.threads) == 2


def test_an_error_ends_being_beside():
    with pytest.raises(ZeroDivisionError), compiling.beside():
        assert compiling.is_beside() / 0
    assert not compiling.is_beside()
