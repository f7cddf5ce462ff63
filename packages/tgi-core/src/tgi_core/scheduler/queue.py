"""Requests that wait for a slot, in the order in which they should run."""

from __future__ import annotations

import heapq

from tgi_core.scheduler.sequence import Sequence

FORGOTTEN = 64  #: removed requests that the heap may always hold


class RequestQueue:
    """A heap by `urgency` that forgets removed requests when they surface, or are as many as those that wait."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._waiting: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._waiting

    def get(self, request_id: int) -> Sequence | None:
        """The waiting sequence of a request."""
        return self._waiting.get(request_id)

    def push(self, sequence: Sequence) -> None:
        """Add a new or preempted sequence."""
        self._waiting[sequence.id] = sequence
        heapq.heappush(self._heap, (sequence.urgency, sequence))

    def peek(self) -> Sequence | None:
        """The most urgent sequence."""
        while self._heap:
            sequence = self._heap[0][1]
            if self._waiting.get(sequence.id) is sequence:
                return sequence
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Sequence:
        """Remove and return the most urgent sequence."""
        sequence = self.peek()
        if sequence is None:
            raise IndexError("the queue is empty")
        heapq.heappop(self._heap)
        del self._waiting[sequence.id]
        return sequence

    def remove(self, request_id: int) -> Sequence | None:
        """Take out one request; None if it does not wait here."""
        removed = self._waiting.pop(request_id, None)
        if len(self._heap) > 2 * len(self._waiting) + FORGOTTEN:
            self._heap = [(sequence.urgency, sequence) for sequence in self._waiting.values()]
            heapq.heapify(self._heap)
        return removed
