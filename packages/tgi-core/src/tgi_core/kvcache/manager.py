"""The KV cache as the scheduler sees it: block tables of sequences over one pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tgi_core.kvcache.block_pool import BlockPool
from tgi_core.kvcache.prefix_cache import TOKEN_BYTES, chain_key, chain_root, content_of


@dataclass(slots=True)
class _Table:
    """Blocks of one sequence, and the chain of keys over its full, committed ones."""

    root: bytes
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    @property
    def tip(self) -> bytes:
        return self.keys[-1] if self.keys else self.root


class KVCacheManager:
    """Six verbs: match, open, extend, commit, discard, close.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens per block; for devices with one block per sequence, the longest sequence.
        prefix_caching: False makes `match` find nothing.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._tables: dict[int, _Table] = {}

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def match(self, tokens: Sequence[int], salt: str = "") -> list[int]:
        """Blocks that already hold the longest known prefix of `tokens`, short of the last token.

        The last token is always computed, because its logits are wanted.
        """
        if not self.prefix_caching:
            return []
        found: list[int] = []
        key, content, size = chain_root(salt), content_of(tokens), self.block_size * TOKEN_BYTES
        for end in range(size, len(content), size):
            key = chain_key(key, content[end - size : end])
            block = self.pool.find(key)
            if block is None:
                break
            found.append(block)
        return found

    def available_beside(self, found: Sequence[int]) -> int:
        """Blocks left for new content once the blocks that `match` found are held."""
        return self.pool.available - sum(not self.pool.is_held(block) for block in found)

    def open(self, sequence_id: int, salt: str = "", found: Sequence[int] = ()) -> None:
        """Start the table of a sequence with the blocks that `match` found for its tokens."""
        for block in found:
            self.pool.hold(block)
        self._tables[sequence_id] = _Table(chain_root(salt), list(found), [self.pool.key_of(block) for block in found])

    def extend(self, sequence_id: int, num_tokens: int) -> tuple[int, ...] | None:
        """Blocks added so that the sequence can hold `num_tokens`; None, and no change, when there are too few."""
        blocks = self._tables[sequence_id].blocks
        missing = self.blocks_for(num_tokens) - len(blocks)
        if missing <= 0:
            return ()
        if missing > self.pool.available:
            return None
        added = tuple(self.pool.take() for _ in range(missing))
        blocks.extend(added)
        return added

    def commit(self, sequence_id: int, tokens: Sequence[int], num_computed: int) -> None:
        """Make the full blocks among the first `num_computed` tokens findable."""
        if not self.prefix_caching:
            return
        table = self._tables[sequence_id]
        for index in range(len(table.keys), num_computed // self.block_size):
            start = index * self.block_size
            table.keys.append(chain_key(table.tip, content_of(tokens[start : start + self.block_size])))
            self.pool.register(table.blocks[index], table.keys[-1])

    def discard(self, sequence_id: int) -> None:
        """Forget what the blocks of a sequence hold, because a step over them failed."""
        for block in self._tables[sequence_id].blocks:
            self.pool.forget(block)

    def close(self, sequence_id: int) -> None:
        """Release all blocks of a sequence, the last first, so that shared beginnings stay cached longest."""
        for block in reversed(self._tables.pop(sequence_id).blocks):
            self.pool.release(block)

    def table(self, sequence_id: int) -> tuple[int, ...]:
        """The blocks of a sequence, in order."""
        return tuple(self._tables[sequence_id].blocks)

    def open_sequences(self) -> frozenset[int]:
        """Ids with a table."""
        return frozenset(self._tables)
