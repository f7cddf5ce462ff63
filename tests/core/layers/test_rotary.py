"""Rotary frequencies against those of transformers."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tgi_core.errors import UnsupportedModel
from tgi_core.kernels.reference import rotary as reference
from tgi_core.layers.rotary import RotaryEmbedding
from tgi_core.model_config import parse_model_config

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def embedding(rope, **fields):
    config = parse_model_config({**SMALL, "rope_theta": 5000.0, "rope_scaling": rope, **fields})
    return RotaryEmbedding(config.rotary, SimpleNamespace(device=torch.device("cpu"), kernels=reference))


@pytest.mark.parametrize(
    ("rope", "fields"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {}),
        ({"type": "linear", "factor": 4.0}, {}),
        ({"rope_type": "dynamic", "factor": 4.0}, {}),
        ({**LLAMA3, "original_max_position_embeddings": 512}, {}),
        ({**LLAMA3, "original_max_position_embeddings": 512}, {"original_max_position_embeddings": 128}),
        (LLAMA3, {}),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, {}),
        ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024}, {}),
        ({"rope_type": "yarn", "factor": 8.0, "beta_fast": 20, "beta_slow": 2, "attention_factor": 0.7}, {}),
        ({"rope_type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}, {}),
    ],
)
def test_frequencies_equal_those_of_transformers(rope, fields):
    config = LlamaConfig(**{**SMALL, "rope_theta": 5000.0, "rope_scaling": dict(rope), **fields})
    expected, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config)
    ours = embedding(rope, **fields)
    torch.testing.assert_close(ours.frequencies.inverse, expected)
    assert ours.frequencies.factor == pytest.approx(factor)


def test_rope_scaling_beats_rope_parameters_as_in_transformers():
    both = embedding({"rope_type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "default"})
    torch.testing.assert_close(both.frequencies.inverse * 2, embedding(None).frequencies.inverse)


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 32 for i in range(32)],
    "long_factor": [1.0 + i for i in range(32)],
}


@pytest.mark.parametrize("trained", [1024, 4096])
@pytest.mark.parametrize("extra", [{}, {"factor": 8.0}, {"attention_factor": 1.5}])
def test_longrope_takes_short_factors_in_the_trained_context_and_long_ones_beyond(trained, extra):
    rope = {**LONGROPE, **extra, "original_max_position_embeddings": trained}
    config = LlamaConfig(**{**SMALL, "rope_theta": 5000.0, "rope_scaling": dict(rope)})
    ours = embedding(rope)
    for position in (trained - 1, trained):
        inverse, factor = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=position + 1)
        cos, sin = ours(torch.tensor([position]))
        torch.testing.assert_close(cos[0], (position * inverse).cos() * factor)
        torch.testing.assert_close(sin[0], (position * inverse).sin() * factor)


def test_longrope_with_factors_of_another_head_size_is_refused():
    with pytest.raises(UnsupportedModel, match="2 factors for 32 frequencies"):
        embedding({**LONGROPE, "short_factor": [1.0, 2.0]})


def test_dynamic_stretches_for_the_whole_context_that_is_served():
    rope = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 1024}
    theta = 5000.0 * (4.0 * 4 - 3) ** (64 / 62)
    expected = 1 / theta ** (torch.arange(0, 64, 2).float() / 64)
    torch.testing.assert_close(embedding(rope).frequencies.inverse, expected)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "nonesuch"}, "'nonesuch' is not implemented; known are"),
        ({"rope_type": "linear"}, "rule 'linear' needs 'factor'"),
        ({"rope_type": "llama3", "factor": "eight"}, "needs 'low_freq_factor'"),
        ({"rope_type": "yarn", "factor": "four"}, "malformed"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(rope, message):
    with pytest.raises(UnsupportedModel, match=message):
        embedding(rope)
