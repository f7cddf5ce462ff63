"""What a GPU records of a model depends on how large it is."""

import pytest
import torch
from torch import nn

from tgi_core.device.torch_gpu import FEW_TOKENS, TOKEN_BUCKETS, TorchGpu

MEGABYTE, GIGABYTE = 10**6, 10**9


def sizes_for(monkeypatch, weight_bytes, ranks=1):
    """Most tokens and rows of recorded steps with prompts."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: weight_bytes)
    gpu = object.__new__(TorchGpu)  # of which this machine may have none
    gpu.torch_device, gpu.size = torch.device("cuda", 0), ranks
    model = nn.Linear(1, 1)
    assert gpu.prepare_model(model) is model
    return gpu.capabilities.token_buckets[-1], gpu.capabilities.mixture_buckets[-1]


@pytest.mark.parametrize(
    ("weight_bytes", "most"),
    [
        (270 * MEGABYTE, (8192, 512)),
        (GIGABYTE, (2048, 512)),
        (2500 * MEGABYTE, (FEW_TOKENS, 512)),
        (16 * GIGABYTE, (FEW_TOKENS, 64)),
        (0, (FEW_TOKENS, 64)),
    ],
)
def test_larger_steps_are_recorded_of_smaller_models(monkeypatch, weight_bytes, most):
    assert sizes_for(monkeypatch, weight_bytes) == most


def test_ranks_record_the_same_whatever_they_hold(monkeypatch):
    assert sizes_for(monkeypatch, 270 * MEGABYTE, ranks=2) == (FEW_TOKENS, 64)


def test_a_model_leaves_the_sizes_of_others_alone(monkeypatch):
    sizes_for(monkeypatch, 16 * GIGABYTE)
    assert TorchGpu.capabilities.token_buckets == TOKEN_BUCKETS
    assert sizes_for(monkeypatch, 270 * MEGABYTE) == (8192, 512)
