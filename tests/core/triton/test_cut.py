"""How queries and keys are divided over programs."""

import numpy as np
import pytest

from tgi_core.triton.cut import PART, cut, longest_first


def ints(*numbers):
    return np.array(numbers, dtype=np.int32)


def test_tiles_that_see_most_keys_begin_first():
    sequence, start = longest_first(ints(0, 70, 40), ints(500, 70, 140), 32)
    assert list(zip(sequence.tolist(), start.tolist(), strict=True)) == [(2, 32), (2, 0), (1, 64), (1, 32), (1, 0)]


def test_keys_are_divided_where_tiles_are_few():
    found = cut(ints(0, 1, 40), ints(3, PART, 8 * PART), 32, 8)
    assert found.sequence.tolist() == [2, 2, 2, 2, 2, 2, 1]
    assert found.parts.tolist() == [3, 3, 3, 3, 3, 3, 1]
    assert found.start.tolist() == [32, 32, 32, 0, 0, 0, 0]
    assert found.part.tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_where_tiles_are_many_enough_each_is_whole(most):
    found = cut(ints(40, 30), ints(9000, 9000), 32, most)
    assert found.parts.tolist() == [1, 1, 1]
    assert found.part.tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_about_the_same_and_none_is_missing(seed):
    random = np.random.default_rng(seed)
    count, most = random.integers(1, 6), int(random.integers(2, 50))
    lengths = random.integers(1, 100, count, dtype=np.int32)
    lens = lengths + random.integers(0, 5000, count, dtype=np.int32)
    found = cut(lengths, lens, 32, most)
    sequence, start = longest_first(lengths, lens, 32)
    first = found.part == 0
    assert found.sequence[first].tolist() == sequence.tolist()
    assert found.start[first].tolist() == start.tolist()
    assert len(found.part) <= max(most, len(sequence))
    for parts, at in zip(found.parts[first], np.flatnonzero(first), strict=True):
        same = slice(at, at + parts)
        assert found.part[same].tolist() == list(range(parts))
        assert set(found.parts[same].tolist()) == {parts}
        assert set(found.sequence[same].tolist()) == {found.sequence[at]}
        assert set(found.start[same].tolist()) == {found.start[at]}
    keys = np.minimum(lens[sequence] - lengths[sequence] + start + 32, lens[sequence])
    shares = keys / found.parts[first]
    divided = found.parts[first] > 1
    assert (np.diff(found.parts[first]) <= 0).all()  # those that are divided come first
    if divided.any():
        assert shares[divided].max() <= 2 * shares[divided].min()
        assert shares.max() <= 2 * shares[divided].min()
