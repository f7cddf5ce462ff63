"""Reading config.json as transformers 4 and 5 write it."""

import pytest

from tgi_core.errors import UnsupportedModel
from tgi_core.model_config import DEFAULTS, parse_model_config

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def test_missing_fields_have_the_meaning_that_transformers_gives_them():
    config = parse_model_config(SMALL)
    assert (config.num_kv_heads, config.head_size, config.max_positions) == (4, 16, 2048)
    assert (config.rotary.rule, config.rotary.theta, config.rotary.size) == ("default", 10000.0, 16)
    assert config.sliding_windows == (None,) * 4


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 100000, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 100000, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100000}},
    ],
)
def test_rope_of_old_and_new_transformers(rope):
    rotary = parse_model_config({**SMALL, **rope}).rotary
    assert (rotary.rule, rotary.theta, rotary.parameters["factor"]) == ("linear", 100000.0, 2.0)


def test_partial_rotary():
    assert parse_model_config({**SMALL, "partial_rotary_factor": 0.5}).rotary.size == 8


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"sliding_window": 8}, (8, 8, 8, 8)),
        ({"sliding_window": None}, (None,) * 4),
        ({"sliding_window": 8, "use_sliding_window": False}, (None,) * 4),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 8)),
        ({"model_type": "llama", "sliding_window": 8}, (None,) * 4),
        ({"model_type": "mistral", "num_key_value_heads": 4}, (4096,) * 4),
        ({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": None}, (None,) * 4),
        ({"model_type": "qwen2", "sliding_window": 8}, (None,) * 4),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True}, (None,) * 4),
        ({"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 2}, (None, None, 4096, 4096)),
        ({"model_type": "gemma2", "sliding_window": 8}, (8, None, 8, None)),
        ({"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 4}, (8, 8, 8, None)),
        (
            {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
            (8, None, 8, None),
        ),
    ],
)
def test_windows_per_layer(fields, windows):
    assert parse_model_config({**SMALL, **fields}).sliding_windows == windows


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype_under_both_names(name):
    assert parse_model_config({**SMALL, name: "bfloat16"}).parameters_dtype == "bfloat16"


def test_a_config_without_sizes_is_no_decoder():
    with pytest.raises(UnsupportedModel, match="no 'hidden_size'"):
        parse_model_config({key: value for key, value in SMALL.items() if key != "hidden_size"})


def test_a_config_without_architectures_is_refused():
    with pytest.raises(UnsupportedModel, match="names no `architectures`"):
        parse_model_config({**SMALL, "architectures": []})


def test_what_families_take_for_missing_keys():
    heads = {"hidden_size": 256, "num_attention_heads": 16}
    assert parse_model_config({**SMALL, **heads, "model_type": "mistral"}).num_kv_heads == 8
    assert (
        parse_model_config({**SMALL, **heads, "model_type": "mistral", "num_key_value_heads": None}).num_kv_heads == 16
    )
    assert parse_model_config({**SMALL, "model_type": "qwen3"}).head_size == 128


SIZES = {
    "vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "num_hidden_layers", "n_layer", "n_layers",
    "num_attention_heads", "n_head", "n_heads", "num_layers", "num_heads", "d_ff",
}  # fmt: skip


@pytest.mark.parametrize("model_type", [name for name in DEFAULTS if not name.startswith("RefinedWeb")])
def test_missing_keys_mean_what_the_class_of_transformers_says(model_type):
    from transformers import AutoConfig

    base = {"architectures": ["Any"], "model_type": model_type}
    full = AutoConfig.for_model(model_type).to_dict()
    given = parse_model_config({**full, **base})
    missing = parse_model_config({**{key: full[key] for key in full.keys() & SIZES}, **base})
    names = ("num_kv_heads", "head_size", "max_positions", "norm_eps", "activation", "sliding_windows")
    assert [getattr(missing, name) for name in names] == [getattr(given, name) for name in names]
    assert [_frequencies(rotary) for rotary in (missing.rotary, missing.local_rotary)] == [
        _frequencies(rotary) for rotary in (given.rotary, given.local_rotary)
    ]
    others = DEFAULTS[model_type].keys() & full.keys() - {"sliding_window"}  # null there where it is not used
    assert {key: missing.raw[key] for key in others} == {key: full[key] for key in others}


def test_the_start_of_decoders_is_what_transformers_would_begin_with():
    config = {**SMALL, "is_encoder_decoder": True, "bos_token_id": 5}
    assert parse_model_config({**config, "is_encoder_decoder": False}).decoder_start_ids == ()
    assert parse_model_config(config).decoder_start_ids == (5,)
    assert parse_model_config({**config, "decoder_start_token_id": 2}).decoder_start_ids == (2,)
    assert parse_model_config(config, {"decoder_start_token_id": 3}).decoder_start_ids == (3,)
    with pytest.raises(UnsupportedModel, match="names no `decoder_start_token_id`"):
        parse_model_config({**config, "bos_token_id": None})


def _frequencies(rotary):
    return rotary and (rotary.theta, rotary.size, rotary.rule, rotary.parameters["original_max_position_embeddings"])


def test_rotary_of_global_and_local_layers():
    old = {"rope_theta": 9e5, "rope_local_base_freq": 7e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    new = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 9e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7e3},
        }
    }
    for fields in (old, new):
        config = parse_model_config({**SMALL, "model_type": "gemma3_text", **fields})
        assert (config.rotary.theta, config.rotary.rule, config.rotary.parameters["factor"]) == (9e5, "linear", 8.0)
        assert (config.local_rotary.theta, config.local_rotary.rule) == (7e3, "default")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be a positive whole number"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"intermediate_size": float("nan")}, "intermediate_size is nan"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_key_value_heads": 3}, "4 attention heads, which is no multiple of 3"),
        ({"sliding_window": -1}, "sliding_window is -1"),
        ({"rms_norm_eps": "tiny"}, "is malformed"),
        ({"rope_scaling": "linear"}, "is malformed"),
        ({"rope_theta": "high"}, "is malformed"),
        ({"layer_types": 3, "sliding_window": 8}, "is malformed"),
        ({"layer_types": ["full_attention"], "sliding_window": 8}, "types of 1 layers, but the model has 4"),
    ],
)
def test_a_senseless_config_is_refused(fields, message):
    with pytest.raises(UnsupportedModel, match=message):
        parse_model_config({**SMALL, **fields})


def test_yarn_lengthens_the_context_that_the_model_was_trained_for():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert parse_model_config({**SMALL, "max_position_embeddings": 512, "rope_scaling": yarn}).max_positions == 2048
    assert parse_model_config({**SMALL, "max_position_embeddings": 2048, "rope_scaling": yarn}).max_positions == 2048
    linear = {"type": "linear", "factor": 4.0}
    assert parse_model_config({**SMALL, "max_position_embeddings": 512, "rope_scaling": linear}).max_positions == 512
