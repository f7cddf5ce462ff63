import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.cpu import native, processor, topology
from tgi_core.cpu.backend import CpuBackend
from tgi_core.engine.engine import Engine
from tgi_core.testing.tiny import make_checkpoint


@pytest.fixture
def threads(monkeypatch):
    """A machine of three cores."""
    monkeypatch.setattr(topology, "threads", lambda: 3)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("compiled", [True, False])
def test_pytorch_has_threads_where_it_computes(tmp_path, threads, compiled):
    if compiled and native.unavailable():
        pytest.skip(native.unavailable())
    folder = str(make_checkpoint(tmp_path, "llama"))
    Engine(EngineConfig(model_id=folder, device="cpu", disable_custom_kernels=not compiled))
    assert torch.get_num_threads() == (1 if compiled else 3)


def test_ranks_share_memory_and_record_nothing(monkeypatch):
    undone = []
    monkeypatch.setattr(topology, "take_share", lambda rank, size: lambda: undone.append((rank, size)))
    monkeypatch.setattr(processor, "available_bytes", lambda: 1000)
    backend = CpuBackend(1, 4)
    assert backend.free_bytes() == 250
    assert backend.capabilities.batch_buckets == backend.capabilities.token_buckets == ()
    backend.close()
    assert undone == [(1, 4)]
    assert CpuBackend().capabilities.batch_buckets
