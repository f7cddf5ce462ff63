"""Rank 0 tells the others what it is about to do."""

from contextlib import contextmanager

import pytest

from tgi_core.runner.base import Handle, Runner
from tgi_core.runner.leading import LeadingRunner
from tgi_core.step import StepPlan, StepResult

PLAN = StepPlan(1, "decode", ())


class Noting(Runner, Handle):
    """Writes down what is asked of it."""

    def __init__(self):
        self.notes = []

    def submit(self, plan):
        self.notes.append(("submit", plan))
        return self

    def warm_up(self, info, progress):
        self.notes.append(("warm up", info))
        progress(1.0, "all")

    def prepare(self):
        self.notes.append("prepare")
        return True

    def close(self):
        self.notes.append("close")

    def done(self):
        return True

    def result(self):
        self.notes.append("result")
        return StepResult([])

    def tell(self, plan):
        self.notes.append(("tell", plan))

    @contextmanager
    def waiting(self):
        self.notes.append("waiting")
        yield
        self.notes.append("waited")


@pytest.fixture
def own():
    return Noting()


@pytest.fixture
def leading(own):
    return LeadingRunner(own, own.tell, own.waiting)


def test_others_are_told_before_a_step(own, leading):
    handle = leading.submit(PLAN)
    assert own.notes == ["waiting", ("tell", PLAN), ("submit", PLAN), "waited"]
    assert handle.done()


def test_results_may_be_waited_for(own, leading):
    handle = leading.submit(PLAN)
    own.notes.clear()
    assert handle.result() == StepResult([])
    assert own.notes == ["waiting", "result", "waited"]


def test_all_warm_up_for_the_same_engine(own, leading):
    told, info = [], object()
    leading.warm_up(info, lambda fraction, detail: told.append(detail))
    assert own.notes == ["waiting", ("tell", info), ("warm up", info), "waited"]
    assert told == ["all"]


def test_all_prepare_at_the_same_place(own, leading):
    assert leading.prepare()
    assert own.notes == ["waiting", ("tell", None), "prepare", "waited"]


def test_only_what_is_recorded_here_is_forgotten(own, leading):
    leading.close()
    assert own.notes == ["close"]
