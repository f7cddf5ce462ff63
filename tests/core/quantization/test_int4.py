"""int4 weights: a bearable error in products, less of it where inputs are large, and the same answer from real ones."""

import pytest
import torch

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.kernels.reference.linear import GROUP, linear_int4, quantize_groups
from tgi_core.quantization.int4 import LEAST_ROWS, CalibratedLinear
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint
from tgi_core.weights.source import default_model_id


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 100, 576])
def test_groups_are_rounded_to_levels_that_make_bytes(inputs):
    weight = randn(70, inputs)
    weight[7], weight[8], weight[9, 0] = 0.0, -2.5, 50.0
    packed = quantize_groups(weight)
    assert packed.levels.shape == (70, -(-inputs // GROUP), GROUP // 2)
    highest = packed.steps.int() * 15 + packed.offsets
    assert packed.steps.min() >= 1
    assert highest.max() <= 255
    found = packed.dequantize()
    assert found.shape == weight.shape
    assert not found[7].any()
    torch.testing.assert_close(found[8], weight[8])
    assert float((found[10:] - weight[10:]).norm() / weight[10:].norm()) < 0.1


def test_an_outlier_harms_its_own_group_alone():
    weight = randn(4, 64)
    before = (quantize_groups(weight).dequantize() - weight)[:, 32:].norm()
    weight[:, 0] = 12.0
    after = (quantize_groups(weight).dequantize() - weight)[:, 32:].norm()
    assert after < 1.5 * before


def test_values_on_a_grid_of_sixteen_are_kept():
    weight = torch.randint(-7, 9, (8, 256), generator=torch.Generator().manual_seed(0)).float() * 0.25
    weight[:, ::32], weight[:, 1::32] = -1.75, 2.0
    found = quantize_groups(weight).dequantize()
    assert float((found - weight).abs().max()) < 0.25 / 8


def test_errors_are_less_where_inputs_matter_more():
    weight, importance = randn(64, 96), torch.ones(96)
    importance[5] = importance[70] = 1000.0
    plain, weighted = (
        (quantize_groups(weight, given).dequantize() - weight).square().mean(0) for given in (None, importance)
    )
    assert float(weighted[[5, 70]].mean()) < 0.3 * float(plain[[5, 70]].mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_near_those_of_plain_weights(dtype):
    weight, x, bias = randn(96, 80), randn(5, 80, seed=1).to(dtype), randn(96, seed=2).to(dtype)
    found = linear_int4(x, linear_int4.pack(weight), bias)
    assert found.dtype is dtype
    plain = x.float() @ weight.T + bias.float()
    assert float((found.float() - plain).norm() / plain.norm()) < 0.1


class Recording:
    """A kernel that keeps what it is given."""

    def __init__(self):
        self.given = []

    def pack(self, weight, importance=None):
        self.given.append(importance)
        return [weight]

    def __call__(self, x, packed, bias):
        return x @ packed[0].T


def test_weights_are_packed_again_with_the_mean_squares_of_their_inputs():
    kernel = Recording()
    linear = CalibratedLinear(kernel)
    first, unused, rare = [linear.pack(torch.eye(3)) for _ in range(3)]
    linear(torch.full((5, 3), 9.0), first, None)  # not watched yet
    linear.watch()
    x = randn(LEAST_ROWS, 3)
    torch.testing.assert_close(linear(x, first, None), x)
    linear(x * 2, first, None)
    linear(x[1:], rare, None)
    linear.learn()
    assert kernel.given == [None, None, None]
    for _ in range(4):
        linear.pack(torch.eye(3))
    torch.testing.assert_close(kernel.given[3], x.square().mean(0) * 2.5)
    assert kernel.given[4:] == [None, None, None]
    assert unused is not rare


def test_the_head_is_int8_and_layers_are_calibrated(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        type(linear_int4), "pack", lambda self, weight, importance=None: seen.append(importance) or (weight.clone(),)
    )
    monkeypatch.setattr(type(linear_int4), "__call__", lambda self, x, packed, bias: x @ packed[0].T)
    path = make_checkpoint(tmp_path / "llama", "llama")
    engine = Engine(EngineConfig(model_id=str(path), device="cpu", quantize="int4", disable_custom_kernels=True))
    layers = 4 * engine._parts.runner.model.config.num_layers
    assert [importance is None for importance in seen] == [True] * layers + [False] * layers
    assert engine._parts.runner.model.lm_head.packed[0].dtype is torch.int8


@pytest.mark.parametrize("family", ["mixtral", "t5", "llama"])
def test_experts_and_layers_are_quantised_and_the_engine_agrees_on_both_kernels(tmp_path, family):
    path = make_checkpoint(tmp_path / family, family)
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    tokens = []
    for reference in (False, True):
        config = EngineConfig(
            model_id=str(path), device="cpu", dtype="float32", quantize="int4", disable_custom_kernels=reference
        )
        tokens.append(Engine(config).generate(["The capital of France"], params)[0].token_ids)
    assert tokens[0] == tokens[1]


def test_real_weights_answer_the_same_question():
    engine = Engine(EngineConfig(model_id=default_model_id(), device="cpu", quantize="int4"))
    text = engine.generate(["The capital of France is"], SamplingParams(max_new_tokens=4))[0].text
    assert text.startswith(" Paris")
