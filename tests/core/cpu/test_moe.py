"""Experts in C++ against the reference."""

import pytest
import torch
import torch.nn.functional as F

from tgi_core.cpu import kernels, native
from tgi_core.cpu.linear import native_linear, native_linear_int4, native_linear_int8
from tgi_core.cpu.moe import NativeExperts, experts
from tgi_core.kernels.reference.moe import Experts

LINEARS = {"plain": native_linear, "int8": native_linear_int8, "int4": native_linear_int4}
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}
COUNT = 5


@pytest.fixture(autouse=True)
def compiled(variant):
    if native.unavailable():
        pytest.skip(native.unavailable())


def layer_of(linear, hidden, size, dtype):
    chance = torch.Generator().manual_seed(1)
    shapes = [(2 * size, hidden), (hidden, size)]
    weights = [[(torch.randn(shape, generator=chance) / 8).to(dtype) for _ in range(COUNT)] for shape in shapes]
    return [[linear.pack(weight) for weight in part] for part in weights]


def chosen_by(tokens, each):
    chance = torch.Generator().manual_seed(2)
    chosen = torch.stack(
        [torch.randperm(COUNT - 1, generator=chance)[:each] for _ in range(tokens)]
    )  # not the last one
    return chosen, torch.rand(tokens, each, generator=chance)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", list(LINEARS))
@pytest.mark.parametrize(("tokens", "each"), [(1, 1), (1, 3), (7, 2), (70, 4)])
@pytest.mark.parametrize(("hidden", "size"), [(64, 96), (40, 24)])
def test_equals_the_reference(hidden, size, tokens, each, kind, dtype):
    parts = LINEARS[kind], kernels.silu_and_mul, *layer_of(LINEARS[kind], hidden, size, dtype)
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(3)).to(dtype)
    found = experts(*parts)
    assert isinstance(found, NativeExperts)
    expected = Experts(*parts)(x, *chosen_by(tokens, each))
    torch.testing.assert_close(found(x, *chosen_by(tokens, each)), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("activation", [kernels.gelu_and_mul, kernels.gelu_tanh_and_mul])
def test_other_activations(activation):
    parts = native_linear, activation, *layer_of(native_linear, 64, 32, torch.float32)
    x, choice = torch.randn(3, 64), chosen_by(3, 2)
    torch.testing.assert_close(experts(*parts)(x, *choice), Experts(*parts)(x, *choice), rtol=1e-5, atol=1e-5)


def test_tokens_do_not_depend_on_those_beside_them():
    both = experts(native_linear, kernels.silu_and_mul, *layer_of(native_linear, 64, 32, torch.float32))
    x, (chosen, weights) = torch.randn(20, 64), chosen_by(20, 2)
    together = both(x, chosen, weights)
    alone = torch.cat([both(x[i : i + 1], chosen[i : i + 1], weights[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_what_is_not_compiled_goes_to_the_reference():
    weights = layer_of(native_linear, 16, 16, torch.float32)
    assert isinstance(experts(native_linear, F.silu, *weights), Experts)
    assert isinstance(experts(lambda x, packed, bias: x, kernels.silu_and_mul, *weights), Experts)
