"""int8 weights: a small error in every product, and the same text from real ones."""

import pytest
import torch

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.kernels.reference.linear import linear_int8, quantize_rows
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint
from tgi_core.weights.source import default_model_id


def test_rows_are_rounded_to_the_nearest_of_255_steps():
    weight = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    weight[7] = 0.0
    rounded, scales = quantize_rows(weight)
    assert rounded.abs().max() == 127
    error = (rounded * scales.unsqueeze(1) - weight).abs()
    assert bool((error <= scales.unsqueeze(1) * 0.5001).all())
    assert not rounded[7].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_near_those_of_plain_weights(dtype):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(96, 64, generator=generator), torch.randn(5, 64, generator=generator).to(dtype)
    found = linear_int8(x, linear_int8.pack(weight), None).float()
    plain = x.float() @ weight.T
    assert float((found - plain).norm() / plain.norm()) < 0.02


def test_experts_and_layers_are_quantised_and_the_engine_agrees_on_both_kernels(tmp_path):
    path = make_checkpoint(tmp_path / "mixtral", "mixtral")
    params = SamplingParams(max_new_tokens=16, ignore_eos=True)
    tokens = []
    for reference in (False, True):
        config = EngineConfig(
            model_id=str(path), device="cpu", dtype="float32", quantize="int8", disable_custom_kernels=reference
        )
        tokens.append(Engine(config).generate(["The capital of France"], params)[0].token_ids)
    assert tokens[0] == tokens[1]


def test_real_weights_answer_the_same_question():
    engine = Engine(EngineConfig(model_id=default_model_id(), device="cpu", quantize="int8"))
    text = engine.generate(["The capital of France is"], SamplingParams(max_new_tokens=4))[0].text
    assert text.startswith(" Paris")
