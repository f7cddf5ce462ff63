"""Whether a waiting sequence may join the running ones, by the memory that all of them may come to need."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Blocks

from tgi_core.kvcache.manager import KVCacheManager
from tgi_core.scheduler.sequence import Sequence

RESERVE = 0.1  #: of all blocks; below that memory is short


def may_admit(sequence: Sequence, found: Blocks[int], running: Iterable[Sequence], kv: KVCacheManager) -> bool:
    """Optimistic while memory is plentiful, by worst case when it is short, so that few are ever preempted.

    A sequence that was preempted before is admitted by worst case only; alone it always fits, since `Limits` refuses
    requests longer than the pool.
    """
    left = kv.available_beside(found) - (kv.blocks_for(sequence.reserved + len(sequence.tokens)) - len(found))
    if left < 0:
        return False
    if left >= RESERVE * kv.pool.size and not sequence.preemptions:
        return True
    worst_case = sum(kv.blocks_for(other.max_len) for other in running) + kv.blocks_for(sequence.max_len)
    return worst_case <= kv.pool.size
