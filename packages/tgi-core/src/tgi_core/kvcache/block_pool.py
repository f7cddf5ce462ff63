"""Blocks of KV cache with reference counts; a block whose content is known stays reusable until it is needed."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import NamedTuple


class BlockCounts(NamedTuple):
    """Every block is in exactly one of three states."""

    free: int  #: content unknown
    cached: int  #: content known, held by nobody
    held: int  #: held by at least one sequence


class BlockPool:
    """`size` blocks with ids 0 .. size-1.  free + cached + held == size, always.

    The lowest free id is handed out first (static-shape devices pad by the highest id in use); cached blocks are
    evicted least recently used first, and only when no block is free.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size))  # a heap
        self._holders = [0] * size
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def available(self) -> int:
        """Blocks that `take` can hand out."""
        return len(self._free) + len(self._cached)

    def counts(self) -> BlockCounts:
        """The three states, by the containers that define them."""
        free, cached = len(self._free), len(self._cached)
        return BlockCounts(free, cached, self.size - free - cached)

    def take(self) -> int:
        """Hold a block for new content.

        Raises:
            IndexError: when none is available.
        """
        if self._free:
            block = heapq.heappop(self._free)
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        else:
            raise IndexError("no block is available")
        self._holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Hold a block that `find` returned, or that somebody else holds."""
        if self._holders[block] == 0:
            del self._cached[block]
        self._holders[block] += 1

    def release(self, block: int) -> None:
        """Give up one hold.  Known content stays in the cache, unknown content is free again."""
        if self._holders[block] == 0:
            raise ValueError(f"block {block} is released but nobody holds it")
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._key_of:
            self._cached[block] = None
        else:
            heapq.heappush(self._free, block)

    def register(self, block: int, key: bytes) -> None:
        """Say what a held block contains.  The first block of a key stays the one that `find` returns."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def find(self, key: bytes) -> int | None:
        """The block that contains what `key` names."""
        return self._block_of.get(key)

    def key_of(self, block: int) -> bytes:
        """What a block contains that `find` returned."""
        return self._key_of[block]

    def is_held(self, block: int) -> bool:
        """Whether a sequence holds the block; a found block that is not held counts as available."""
        return self._holders[block] > 0

    def forget(self, block: int) -> None:
        """The content of a held block is not to be trusted."""
        if block in self._key_of:
            self._forget(block)

    def _forget(self, block: int) -> None:
        del self._block_of[self._key_of.pop(block)]

    def check(self) -> None:
        """Raise AssertionError unless every block is in exactly one state.  For tests and debugging; O(size)."""
        free, cached = set(self._free), set(self._cached)
        held = {block for block, holders in enumerate(self._holders) if holders}
        if len(free) != len(self._free) or free & cached or free & held or cached & held:
            raise AssertionError("a block is in two states")
        if len(free) + len(cached) + len(held) != self.size:
            raise AssertionError(f"{self.size - len(free) - len(cached) - len(held)} blocks leaked")
        if {block: key for key, block in self._block_of.items()} != self._key_of or free & self._key_of.keys():
            raise AssertionError("the prefix cache points at a block that does not hold its content")
