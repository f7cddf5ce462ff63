import pytest

from tgi_core import builtin
from tgi_core.engine.explain import models_report
from tgi_core.model_config import parse_model_config
from tgi_core.models.families import FAMILIES
from tgi_core.models.select import select_model
from tgi_core.plugins.manager import load_plugins
from tgi_core.plugins.specs import DeviceProbe
from tgi_gaudi import plugin
from tgi_gaudi.families import (
    EXEMPTIONS,
    FLOAT8_ARCHITECTURES,
    OPTIMUM_ARCHITECTURES,
    WRONG,
    gaudi_models,
    why_core,
    why_divided,
    why_not_float8,
)
from tgi_gaudi.settings import GaudiSettings

KNOWN = {name: spec for spec in FAMILIES for name in spec.architectures}
SIZES = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FLASH = GaudiSettings(use_flash_attention=True)


@pytest.fixture
def plugins(monkeypatch):
    probe = DeviceProbe(kind="gaudi", backend="tgi_gaudi.backend:GaudiBackend", products=("Intel Gaudi 2",))
    monkeypatch.setattr(plugin, "probe", lambda: probe)
    return load_plugins([builtin, plugin], [])


def config(architecture, **raw):
    return parse_model_config({**SIZES, "architectures": [architecture], **raw})


def test_every_architecture_of_core_has_one_way():
    names = [name for spec in gaudi_models() for name in spec.architectures]
    assert sorted(names) == sorted(KNOWN)


def test_the_table_names_what_there_is_and_nothing_twice():
    assert set(OPTIMUM_ARCHITECTURES) <= set(KNOWN)
    assert set(WRONG) <= set(KNOWN) - set(OPTIMUM_ARCHITECTURES)
    assert set(FLOAT8_ARCHITECTURES) <= set(OPTIMUM_ARCHITECTURES)
    assert {name for exemption in EXEMPTIONS for name in exemption.architectures} <= set(OPTIMUM_ARCHITECTURES)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_way_that_is_taken(plugins, name):
    spec = select_model(plugins, name, "gaudi")
    assert spec.device == "gaudi"
    assert spec.note.startswith("optimum-habana's model" if name in OPTIMUM_ARCHITECTURES else "core's model, as")


@pytest.mark.parametrize(
    ("architecture", "raw", "settings", "why"),
    [
        ("LlamaForCausalLM", {}, GaudiSettings(), ""),
        ("LlamaForCausalLM", {"head_dim": 32}, GaudiSettings(), "with a head size of its own"),
        ("Qwen3ForCausalLM", {"head_dim": 32}, GaudiSettings(), ""),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2}}, GaudiSettings(), "with linear"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "llama3", "factor": 2}}, GaudiSettings(), ""),
        ("MistralForCausalLM", {"sliding_window": 16}, GaudiSettings(), "with a sliding window"),
        ("MistralForCausalLM", {"sliding_window": None}, GaudiSettings(), ""),
        ("PhiForCausalLM", {"num_key_value_heads": 2}, GaudiSettings(), "with grouped heads"),
        ("FalconForCausalLM", {"multi_query": True}, GaudiSettings(), ""),
        ("FalconForCausalLM", {"new_decoder_architecture": True}, GaudiSettings(), "of the new architecture"),
        ("FalconForCausalLM", {"new_decoder_architecture": True}, FLASH, ""),
        ("FalconForCausalLM", {"new_decoder_architecture": True, "alibi": True}, FLASH, "of the new architecture"),
        ("Starcoder2ForCausalLM", {}, GaudiSettings(), "unless USE_FLASH_ATTENTION is set"),
        ("Starcoder2ForCausalLM", {}, FLASH, ""),
        ("MptForCausalLM", {"attn_config": {"softmax_scale": 0.1}}, GaudiSettings(), ""),
        ("MptForCausalLM", {"attn_config": {"softmax_scale": 0.1}}, FLASH, "with a softmax scale"),
        ("Qwen2MoeForCausalLM", {"mlp_only_layers": [0]}, GaudiSettings(), "with layers that have no experts"),
        ("OPTForCausalLM", {}, FLASH, "optimum-habana's decodes with the position of the next token"),
        ("GPT2LMHeadCustomModel", {}, FLASH, "optimum-habana's has no such name"),
    ],
)
def test_configurations_that_core_runs(architecture, raw, settings, why):
    found = why_core(config(architecture, **raw), settings)
    assert found.startswith(why)
    assert bool(found) == bool(why)


@pytest.mark.parametrize(
    ("architecture", "settings", "why"),
    [
        ("LlamaForCausalLM", GaudiSettings(), ""),
        ("LlamaForCausalLM", FLASH, "flash attention in float8 has not been compared"),
        ("MixtralForCausalLM", GaudiSettings(), "MixtralForCausalLM in float8 has not been compared"),
    ],
)
def test_what_runs_in_float8(architecture, settings, why):
    found = why_not_float8(config(architecture), settings)
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_a_model_over_several_cards_is_core_s():
    assert why_divided(1) == ""
    assert why_divided(2) == "divided over 2 cards: optimum-habana's is whole"


def test_the_report_says_how_each_family_runs_and_calls_none_optimised(plugins):
    families, ways, _ = models_report(plugins).split("\n\n")
    head, *rows = families.splitlines()
    column = head.index("GAUDI")
    assert {row[column : column + 10].split()[0] for row in rows} == {"yes"}
    (opt,) = (line for line in ways.splitlines() if "OPTForCausalLM" in line)
    assert opt.split(maxsplit=2)[:2] == ["gaudi", "OPT,"]
    assert opt.endswith("core's model, as optimum-habana's decodes with the position of the next token")
    (mistral,) = (line for line in ways.splitlines() if "MistralForCausalLM" in line)
    assert "optimum-habana's model; core's with a sliding window, with linear" in mistral
