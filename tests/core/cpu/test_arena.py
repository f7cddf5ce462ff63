import itertools
import random

import pytest
import torch

from tgi_core.cpu.arena import CHUNK_BYTES, Arena
from tgi_core.cpu.memory import CACHE_LINE


def places(tensors):
    return sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors)


@pytest.mark.parametrize("size", [(), (3,), (4, 5), (0, 7), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_are_as_asked_for(size, dtype):
    stride = torch.empty(size).stride()
    tensor = Arena([]).empty(size, stride, dtype)
    assert (tensor.shape, tensor.stride(), tensor.dtype) == (size, stride, dtype)
    assert tensor.data_ptr() % CACHE_LINE == 0


def test_strides_are_kept():
    tensor = Arena([]).empty((3, 4), (1, 3), torch.float32)
    assert tensor.copy_(torch.arange(12.0).view(3, 4)).t().is_contiguous()


def test_live_tensors_never_overlap_and_all_memory_comes_back():
    memory, live = [], []
    arena, chance = Arena(memory), random.Random(5)
    for _ in range(500):
        if live and chance.random() < 0.45:
            live.pop(chance.randrange(len(live)))
        else:
            live.append(arena.empty((chance.randrange(1, 300_000),), (1,), torch.float32))
        found = places(live)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(found))
    live.clear()
    assert len(memory) > 1
    assert [chunk.holes for chunk in arena._chunks] == [[(0, len(chunk))] for chunk in memory]


def test_views_keep_memory_and_aliases_do_not():
    arena = Arena([])
    first = arena.empty((64,), (1,), torch.float32)
    at, view, alias = first.data_ptr(), first[8:16].view(2, 4), arena.alias(first[8:16])
    del first
    assert arena.empty((64,), (1,), torch.float32).data_ptr() != at
    assert (alias.data_ptr(), alias.shape) == (view.data_ptr(), (8,))
    del view
    assert arena.empty((64,), (1,), torch.float32).data_ptr() == at


def test_tensors_from_elsewhere_are_their_own_alias():
    arena, tensor = Arena([]), torch.ones(3)
    arena.empty((1,), (1,), torch.float32)
    assert arena.alias(tensor) is tensor


def test_another_arena_begins_anew_on_the_same_memory():
    memory = []
    first = Arena(memory).empty((CHUNK_BYTES,), (1,), torch.float32)
    second = Arena(memory).empty((CHUNK_BYTES,), (1,), torch.float32)
    assert first.data_ptr() == second.data_ptr()
    assert len(memory) == 1
