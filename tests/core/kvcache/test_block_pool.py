"""The allocator identity under random use, and the order in which blocks are handed out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi_core.kvcache.block_pool import BlockCounts, BlockPool


def test_the_lowest_free_block_is_taken_first():
    pool = BlockPool(4)
    assert [pool.take() for _ in range(3)] == [0, 1, 2]
    pool.release(1)
    assert pool.take() == 1


def test_known_content_survives_release_and_is_evicted_oldest_first():
    pool = BlockPool(2)
    for key in (b"a", b"b"):
        block = pool.take()
        pool.register(block, key)
        pool.release(block)
    assert pool.counts() == BlockCounts(free=0, cached=2, held=0)
    pool.hold(pool.find(b"a"))
    pool.release(0)  # now "b" is the oldest
    assert pool.take() == 1
    assert pool.find(b"b") is None
    assert pool.find(b"a") == 0


def test_taking_from_an_exhausted_pool_raises():
    pool = BlockPool(1)
    pool.take()
    with pytest.raises(IndexError, match="no block"):
        pool.take()


def test_releasing_what_nobody_holds_raises():
    with pytest.raises(ValueError, match="nobody holds"):
        BlockPool(1).release(0)


def test_forgotten_content_is_not_found_again():
    pool = BlockPool(1)
    pool.register(pool.take(), b"a")
    pool.forget(0)
    pool.release(0)
    assert pool.find(b"a") is None
    assert pool.counts().free == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "hold", "release", "register", "find"]), st.integers(0, 7)), max_size=80
    )
)
def test_every_block_is_in_exactly_one_state(operations):
    pool = BlockPool(5)
    holds: list[int] = []
    for operation, number in operations:
        key = bytes([number])
        if operation == "take" and pool.available:
            holds.append(pool.take())
        elif operation == "hold" and (block := pool.find(key)) is not None:
            pool.hold(block)
            holds.append(block)
        elif operation == "release" and holds:
            pool.release(holds.pop(number % len(holds)))
        elif operation == "register" and holds:
            pool.register(holds[number % len(holds)], key)
        pool.check()
        assert sum(pool.counts()) == pool.size
        assert pool.counts().held == len(set(holds))
