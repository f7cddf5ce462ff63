"""The order of waiting requests, and what the queue keeps."""

import random

from tgi_core.request import Request
from tgi_core.scheduler.queue import FORGOTTEN, RequestQueue
from tgi_core.scheduler.sequence import PRIORITY_LEAD, Sequence


def sequence(number, priority=0):
    return Sequence(Request(id=number, prompt_ids=[1], priority=priority), seed=0, arrival=number)


def drain(queue):
    return [queue.pop().id for _ in range(len(queue))]


def test_arrival_decides_and_a_priority_leads_by_so_many_arrivals():
    queue = RequestQueue()
    numbers = [1, 2, PRIORITY_LEAD, PRIORITY_LEAD + 5]
    for number in numbers:
        queue.push(sequence(number, priority=-(number == PRIORITY_LEAD + 5)))
    assert drain(queue) == [1, 2, PRIORITY_LEAD + 5, PRIORITY_LEAD]


def test_removed_requests_are_forgotten_even_behind_one_that_stays():
    queue = RequestQueue()
    queue.push(sequence(0))
    for number in range(1, 5000):
        queue.push(sequence(number))
        queue.remove(number)
        assert queue.peek().id == 0
    assert len(queue._heap) <= FORGOTTEN + 3


def test_random_removals_keep_the_order():
    rng = random.Random(0)
    queue, waiting = RequestQueue(), set()
    for number in range(2000):
        queue.push(sequence(number))
        waiting.add(number)
        if rng.random() < 0.7:
            victim = rng.randrange(number + 1)
            assert (queue.remove(victim) is not None) == (victim in waiting)
            waiting.discard(victim)
    assert drain(queue) == sorted(waiting)
    assert queue.peek() is None
