"""Choosing the implementation of an architecture."""

import pytest

from tgi_core.errors import RegistrationConflict, UnsupportedModel
from tgi_core.models.select import FALLBACK, select_model, select_model_or_fallback
from tgi_core.plugins.specs import ModelSpec


def spec(target="x:Y", **changes):
    return ModelSpec(**{"architectures": ("LlamaForCausalLM",), "target": target, "device": "fake", **changes})


def test_a_device_model_beats_the_general_one(load):
    plugins = load(vendor={"tgi_register_models": [spec()]})
    assert select_model(plugins, "LlamaForCausalLM", "fake").target == "x:Y"
    assert select_model(plugins, "LlamaForCausalLM", "cpu").target == "tgi_core.models.llama:LlamaForCausalLM"


def test_equal_rank_is_a_conflict(load):
    plugins = load(a={"tgi_register_models": [spec()]}, b={"tgi_register_models": [spec()]})
    with pytest.raises(RegistrationConflict, match="a and b with the same rank; disable one of them with"):
        select_model(plugins, "LlamaForCausalLM", "fake")


def test_an_unknown_architecture_names_the_nearest(load):
    with pytest.raises(UnsupportedModel, match="nearest known one is MistralForCausalLM"):
        select_model(load(), "MistralForCasualLM", "cpu")


def test_a_device_may_refuse_what_its_vendor_has_no_model_for(load):
    plugins = load(vendor={"tgi_register_models": [spec()]})
    assert select_model(plugins, "LlamaForCausalLM", "fake", "its graphs are few").target == "x:Y"
    reason = "MistralForCausalLM cannot run on fake: its graphs are few; it runs LlamaForCausalLM"
    with pytest.raises(UnsupportedModel, match=reason):
        select_model_or_fallback(plugins, "MistralForCausalLM", "fake", "its graphs are few")
    assert select_model_or_fallback(plugins, "MistralForCasualLM", "fake")[0] is FALLBACK
