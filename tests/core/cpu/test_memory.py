import pytest
import torch

from tgi_core.cpu.memory import CACHE_LINE, WeightMemory, lazy_zeros


def test_lazy_zeros():
    assert not lazy_zeros(1 << 16).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_weights_lie_one_after_the_other(dtype):
    memory = WeightMemory()
    found = [memory.empty(elements, dtype) for elements in (33, 1000, 1)]
    assert [tensor.shape for tensor in found] == [(33,), (1000,), (1,)]
    assert all(tensor.data_ptr() % CACHE_LINE == 0 for tensor in found)
    for number, tensor in enumerate(found):
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(found))
    assert found[1].data_ptr() - found[0].data_ptr() < 33 * dtype.itemsize + CACHE_LINE


def test_a_weight_may_be_larger_than_a_chunk(monkeypatch):
    monkeypatch.setattr(WeightMemory, "CHUNK_BYTES", 1 << 12)
    memory = WeightMemory()
    small, large, next_small = (memory.empty(n, torch.uint8) for n in (100, 1 << 13, 100))
    large.fill_(7), small.fill_(1), next_small.fill_(2)
    assert (large == 7).all()
