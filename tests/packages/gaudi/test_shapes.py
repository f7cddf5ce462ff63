from itertools import pairwise

import pytest

from tgi_gaudi.settings import GaudiSettings
from tgi_gaudi.shapes import at_least, doubles, lengths, multiples, shapes_for


@pytest.mark.parametrize("step", [1, 16, 128])
@pytest.mark.parametrize("limit", [1, 127, 128, 129, 2047, 131072])
def test_lengths_are_multiples_that_reach_the_limit_and_pad_by_a_quarter_at_most(step, limit):
    found = lengths(step, limit)
    assert all(length % step == 0 for length in found)
    assert found[-1] - step < limit <= found[-1]
    assert all(b - a <= max(step, a / 4) for a, b in pairwise(found))
    assert list(found) == sorted(set(found))


def test_long_limits_have_few_lengths():
    assert len(lengths(128, 131072)) < 40


def test_no_multiple_means_one_length():
    assert lengths(0, 1000) == (1000,)


def test_multiples_and_doubles_end_at_the_limit():
    assert multiples(8, 20) == (8, 16, 20)
    assert multiples(8, 8) == (8,)
    assert multiples(8, 3) == (3,)
    assert doubles(5) == (1, 2, 4, 5)
    assert doubles(1) == (1,)


def test_shapes_of_a_device():
    shapes = shapes_for(GaudiSettings(), batch_size=20, longest=300)
    assert (shapes.decode_rows, shapes.prefill_rows, shapes.prompt_lengths) == ((8, 16, 20), 4, (128, 256, 384))
    assert [shapes.decode_rows_for(rows) for rows in (1, 8, 9, 20)] == [8, 8, 16, 20]
    assert [shapes.prompt_length_for(tokens) for tokens in (1, 129)] == [128, 256]


def test_what_is_too_large_is_said():
    with pytest.raises(ValueError, match="9 is more than the largest shape, 8"):
        at_least(9, (4, 8))
