"""Steps for which kernels are compiled ahead."""

import numpy as np
import pytest

from tgi_core.runner.unrecorded import DECODES, LONGEST, PROMPTS, unrecorded_steps


@pytest.mark.parametrize("longest", [64, 1000, 2016, 131072])
def test_steps_are_those_of_sequences_that_a_model_can_have(longest):
    steps = list(unrecorded_steps(longest, 32))
    for step in steps:
        lengths = np.diff(step.query_starts)
        assert (lengths >= 1).all()
        assert (step.context_lens >= lengths).all()
        assert step.context_lens.max() <= longest
        assert step.block_tables.shape == (len(lengths), -(-step.context_lens.max() // 32))
        assert not step.block_tables.any()
    assert {(np.diff(step.query_starts) == 1).sum() for step in steps} == {0, *DECODES}
    assert len(steps) == 2 * len(PROMPTS) + len(DECODES) * len(LONGEST)


def test_short_sequences_need_none():
    assert not list(unrecorded_steps(32, 32))
