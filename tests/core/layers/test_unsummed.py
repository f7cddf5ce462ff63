"""Shares of sums over ranks, and norms that take them."""

from types import SimpleNamespace

import pytest
import torch

from tgi_core.distributed.group import Alone
from tgi_core.kernels.reference import norm as reference
from tgi_core.layers.norm import Float32RMSNorm, LayerNorm, RMSNorm
from tgi_core.layers.unsummed import Unsummed, summed

BUILD = SimpleNamespace(kernels=reference, dtype=torch.bfloat16)


class Doubles(Alone):
    """Two ranks that have the same, one of which is here."""

    def __init__(self, *, norms):
        self.norms, self.asked = norms, []

    def all_reduce(self, x):
        self.asked.append("sum")
        return 2 * x

    def sum_and_norm(self, x, residual, norm):
        self.asked.append("sum and norm")
        if not self.norms:
            return None
        weight, bias, eps, is_rms = norm
        if is_rms:
            return reference.add_rms_norm(2 * x, residual, weight, eps)
        return reference.add_layer_norm(2 * x, residual, weight, bias, eps)


def norm_of(kind):
    norm = kind(64, 1e-5, BUILD)
    norm.weight = torch.rand(64, dtype=torch.float32 if kind is Float32RMSNorm else torch.bfloat16)
    if kind is LayerNorm:
        norm.bias = torch.rand(64, dtype=torch.bfloat16)
    return norm


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm, Float32RMSNorm])
@pytest.mark.parametrize("begins", [True, False])
def test_norms_of_shares_are_those_of_their_sums(kind, norms, begins):
    norm, group = norm_of(kind), Doubles(norms=norms)
    x, residual = torch.randn(2, 3, 64).bfloat16()
    residual = None if begins else residual
    expected = norm.add(2 * x, residual if begins else residual.clone())
    found = norm.add(Unsummed(x, group), residual)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    asks = not begins and kind is not Float32RMSNorm
    assert group.asked == ["sum and norm"] * asks + ["sum"] * (not asks or not norms)


def test_what_is_no_share_is_its_own_sum():
    x, group = torch.ones(2), Doubles(norms=False)
    assert summed(x) is x
    assert summed(Unsummed(x, group)).tolist() == [2, 2]


def test_shares_are_added_and_scaled_before_they_are_summed():
    x, group = torch.arange(6.0).view(2, 3), Doubles(norms=False)
    gate = torch.tensor([[2.0], [0.5]])
    assert torch.equal(summed(Unsummed(x, group) * gate + Unsummed(x, group) * 3), 2 * (x * gate + x * 3))
    assert group.asked == ["sum"]
