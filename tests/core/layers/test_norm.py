"""Where norms keep their weights."""

from types import SimpleNamespace

import torch

from tgi_core.layers.norm import LayerNorm
from tgi_core.weights.loader import Checkpoint, Source


def test_a_norm_without_a_stored_weight_lies_on_the_models_device():
    device = torch.device("meta")
    checkpoint = Checkpoint(SimpleNamespace(names=frozenset()), ("",), device, lambda out, stored: None)
    norm = LayerNorm(8, 1e-5, SimpleNamespace(kernels=None, dtype=torch.float32), affine=False)
    norm.load(Source(checkpoint, "norm"))
    assert (norm.weight.device, norm.weight.shape) == (device, (8,))
