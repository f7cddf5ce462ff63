"""Block tables and prefix reuse."""

import pytest

from tgi_core.kvcache.manager import KVCacheManager


@pytest.fixture
def kv():
    return KVCacheManager(num_blocks=6, block_size=4)


def run(kv, sequence_id, tokens, salt=""):
    found = kv.match(tokens, salt)
    kv.open(sequence_id, salt, found)
    kv.extend(sequence_id, len(tokens))
    kv.commit(sequence_id, tokens, len(tokens))
    return len(found) * kv.block_size


def test_a_repeated_prompt_is_found_but_for_its_last_token(kv):
    assert run(kv, 1, list(range(9))) == 0
    assert run(kv, 2, list(range(9))) == 8
    assert run(kv, 3, list(range(8))) == 4
    assert kv.table(1)[:2] == kv.table(2)[:2]


def test_prefixes_are_not_shared_between_salts(kv):
    run(kv, 1, list(range(9)), salt="tenant a")
    assert run(kv, 2, list(range(9)), salt="tenant b") == 0


def test_equal_blocks_after_different_prefixes_are_different(kv):
    run(kv, 1, [0, 0, 0, 0, 1, 1, 1, 1, 2])
    assert run(kv, 2, [9, 9, 9, 9, 1, 1, 1, 1, 2]) == 0


def test_extend_without_enough_blocks_changes_nothing(kv):
    kv.open(1)
    assert kv.extend(1, 20) == (0, 1, 2, 3, 4)
    kv.open(2)
    assert kv.extend(2, 8) is None
    assert kv.pool.available == 1
    assert kv.table(2) == ()


def test_closed_sequences_leave_reusable_blocks(kv):
    run(kv, 1, list(range(9)))
    kv.close(1)
    assert kv.pool.counts() == (4, 2, 0)
    assert run(kv, 2, list(range(9))) == 8


def test_discarded_blocks_are_not_found(kv):
    run(kv, 1, list(range(9)))
    kv.discard(1)
    kv.close(1)
    assert kv.match(list(range(9))) == []
    assert kv.pool.counts().free == 6


def test_without_prefix_caching_nothing_is_found():
    kv = KVCacheManager(num_blocks=6, block_size=4, prefix_caching=False)
    run(kv, 1, list(range(9)))
    assert kv.match(list(range(9))) == []
