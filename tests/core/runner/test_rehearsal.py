"""Steps that no request asked for."""

import numpy as np
import pytest

from tgi_core.runner.rehearsal import DECODES, LONGEST, PROMPTS, Bounds, step_of, unrecorded_steps

BOUNDS = Bounds(rows=512, tokens=8192, recorded=1024, longest=8192, block_size=32)


def test_a_step_of_new_tokens_behind_others():
    step = step_of([1, 3], [32, 0], 32)
    assert step.query_starts.tolist() == [0, 1, 4]
    assert step.context_lens.tolist() == [33, 3]
    assert step.block_tables.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("longest", [1000, 2048, 131072])
def test_all_kinds_of_steps_are_foreseen_within_what_a_model_knows(longest):
    steps = list(unrecorded_steps(BOUNDS._replace(longest=longest)))
    for step in steps:
        lengths = np.diff(step.query_starts)
        assert (lengths >= 1).all()
        assert (step.context_lens >= lengths).all()
        assert step.context_lens.max() <= longest
    singles = [(np.diff(step.query_starts) == 1).sum() for step in steps]
    assert set(singles) == {0, *DECODES}
    alone = len(PROMPTS) * 2 - 2 * (longest < 1024)  # a prompt of a thousand tokens is recorded
    assert len(steps) == alone + len(DECODES) * len(LONGEST)


@pytest.mark.parametrize("bounds", [{"longest": 400}, {"recorded": 8192}, {"tokens": 1024}, {"rows": 0}])
def test_no_step_is_foreseen_that_does_not_come(bounds):
    assert not list(unrecorded_steps(BOUNDS._replace(**bounds)))


def test_few_rows_leave_out_steps_of_more():
    steps = list(unrecorded_steps(BOUNDS._replace(rows=4)))
    assert {len(step.context_lens) for step in steps} == {1, 2, 3, 4}
