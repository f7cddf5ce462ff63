"""How queries and keys are divided over programs."""

import numpy as np
import pytest

from tgi_core.triton.cut import PART, cut


def ints(*numbers):
    return np.array(numbers, dtype=np.int32)


def tiles_of(found):
    return list(zip(found.sequence.tolist(), found.start.tolist(), strict=True))


def test_tiles_that_see_most_keys_begin_first():
    found = cut(ints(0, 70, 40), ints(500, 70, 140), 32, 0, is_causal=True)
    assert tiles_of(found) == [(2, 32), (2, 0), (1, 64), (1, 32), (1, 0)]
    found = cut(ints(40, 1), ints(5, 9), 32, 8, is_causal=False)  # more queries than keys
    assert tiles_of(found) == [(1, 0), (0, 0), (0, 32)]
    assert found.parts.tolist() == [1, 1, 1]


def test_keys_are_divided_where_tiles_are_few():
    found = cut(ints(0, 1, 40), ints(3, PART, 8 * PART), 32, 8, is_causal=True)
    assert tiles_of(found) == [(2, 32)] * 3 + [(2, 0)] * 3 + [(1, 0)]
    assert found.parts.tolist() == [3, 3, 3, 3, 3, 3, 1]
    assert found.part.tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_where_tiles_are_many_enough_each_is_whole(most):
    found = cut(ints(40, 30), ints(9000, 9000), 32, most, is_causal=True)
    assert found.parts.tolist() == [1, 1, 1]
    assert found.part.tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("is_causal", [True, False])
def test_parts_are_about_the_same_and_none_is_missing(seed, is_causal):
    random = np.random.default_rng(seed)
    count, most = random.integers(1, 6), int(random.integers(2, 50))
    lengths = random.integers(1, 100, count, dtype=np.int32)
    before = random.integers(0, 5000, count, dtype=np.int32)
    lens = lengths + before if is_causal else before + 1
    found, whole = (cut(lengths, lens, 32, limit, is_causal=is_causal) for limit in (most, 0))
    first = found.part == 0
    assert found.sequence[first].tolist() == whole.sequence.tolist()
    assert found.start[first].tolist() == whole.start.tolist()
    assert len(found.part) <= max(most, len(whole.part))
    for parts, at in zip(found.parts[first], np.flatnonzero(first), strict=True):
        same = slice(at, at + parts)
        assert found.part[same].tolist() == list(range(parts))
        assert set(found.parts[same].tolist()) == {parts}
        assert set(tiles_of(found)[same]) == {(found.sequence[at], found.start[at])}
    keys = lens[whole.sequence]
    if is_causal:
        keys = np.minimum(before[whole.sequence] + whole.start + 32, keys)
    shares = keys / found.parts[first]
    divided = found.parts[first] > 1
    assert (np.diff(found.parts[first]) <= 0).all()  # those that are divided come first
    if divided.any():
        assert shares.max() <= 2 * shares[divided].min()
