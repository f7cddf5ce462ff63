"""What tgi-neuron registers, reads and keeps, without anything of the vendor."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tgi_core import builtin
from tgi_core.engine.explain import models_report
from tgi_core.errors import ConfigError, UnsupportedModel
from tgi_core.models.select import select_model
from tgi_core.plugins import ENTRY_POINT_GROUP
from tgi_core.plugins.manager import load_plugins
from tgi_neuron import plugin
from tgi_neuron.compiled import CompiledModels
from tgi_neuron.environment import read
from tgi_neuron.families import OWN_MODELS, longest, why_not_on_device, why_unfit
from tgi_neuron.probe import probe

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 512}
LLAMA4 = {"model_type": "llama4_text", "num_hidden_layers": 4}


@pytest.fixture
def plugins():
    return load_plugins([builtin], [EntryPoint("neuron", "tgi_neuron.plugin", ENTRY_POINT_GROUP)])


def test_families_are_optimum_neurons(plugins):
    assert select_model(plugins, "SmolLM3ForCausalLM", "neuron", OWN_MODELS).target == "tgi_neuron.model:NeuronDecoder"
    with pytest.raises(
        UnsupportedModel, match=r"BloomForCausalLM cannot run on neuron: .*; it runs GraniteForCausalLM"
    ):
        select_model(plugins, "BloomForCausalLM", "neuron", OWN_MODELS)
    assert select_model(plugins, "LlamaForCausalLM", "cpu").device == "cpu"


def test_the_matrix_says_which_run(plugins, monkeypatch, host):
    name = "sys/class/neuron_device/neuron0/neuron_core0/info/architecture/device_name"
    root = host({"dev/neuron0": "", name: "inferentia2"})
    monkeypatch.setattr(plugin, "probe", lambda: probe(root, lambda library: "2.8"))
    rows = {line.split("  ")[0]: line.split() for line in models_report(plugins).splitlines()}
    column = rows["FAMILY"].index("NEURON")
    assert rows["Qwen2"][column] == "yes"
    assert rows["BLOOM"][column] == "no"
    assert rows["SmolLM3"][column] == "yes"  # which nobody else has


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, ""),
        ({"head_dim": 16, "rope_scaling": None, "attention_bias": False}, ""),
        ({"head_dim": 32}, "heads of a size of their own"),
        ({"model_type": "qwen3", "head_dim": 32}, ""),
        ({"attention_bias": True}, "biases of attention's projections"),
        ({"partial_rotary_factor": 0.75}, "rotary embeddings of a part of each head"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ""),
        ({"rope_scaling": {"type": "longrope"}}, "rotary embeddings that change with the length"),
        ({"model_type": "qwen2", "rope_parameters": {"rope_type": "yarn"}}, "scaled rotary embeddings"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights"),
        (LLAMA4, "layers without rotary embeddings"),
        ({**LLAMA4, "no_rope_layers": [1, 1, 1, 0]}, "layers without rotary embeddings"),
        ({**LLAMA4, "no_rope_layers": [1, 1, 1, 1]}, ""),
        ({**LLAMA4, "no_rope_layers": [], "no_rope_layer_interval": 8}, ""),
        ({**LLAMA4, "no_rope_layers": [1], "rope_scaling": {"rope_type": "llama3"}}, ""),
        ({**LLAMA4, "no_rope_layers": [1], "rope_scaling": {"rope_type": "yarn"}}, "scaled rotary embeddings"),
        ({"model_type": "qwen3_moe"}, "weights of experts that are not normalised"),
    ],
)
def test_what_would_be_computed_wrong_is_named(changes, what):
    assert why_unfit({**LLAMA, **changes}) == what


def test_windows_bound_the_length():
    assert longest(LLAMA) == 512
    assert longest({**LLAMA, "model_type": "phi3", "sliding_window": 128}) == 128
    assert longest({**LLAMA, "model_type": "qwen2", "sliding_window": 128, "use_sliding_window": False}) == 512
    assert longest({**LLAMA, **LLAMA4, "attention_chunk_size": 128}) == 128
    assert longest({**LLAMA, **LLAMA4, "max_position_embeddings": 10**6}) == 8192
    assert longest({**LLAMA, "model_type": "qwen2", "sliding_window": 128, "use_sliding_window": True}) == 128


def test_a_bug_of_the_runtime_is_known():
    assert "gives wrong tokens for Qwen3" in why_not_on_device({"model_type": "qwen3"}, 2)
    assert why_not_on_device({"model_type": "qwen3"}, 4) == why_not_on_device(LLAMA, 2) == ""


def test_variables():
    found = read({"HF_NUM_CORES": "2", "HF_AUTO_CAST_TYPE": "BF16", "TGI_NEURON_CACHE": "/models"})
    assert (found.cores, found.dtype, found.sampling, found.cache) == (2, "bfloat16", None, Path("/models"))
    assert read({"XDG_CACHE_HOME": "/c"}).cache == Path("/c/tgi/neuron")
    assert read({"HF_NUM_CORES": ""}).cores is None
    with pytest.raises(ConfigError, match="HF_NUM_CORES=0: must be a number of Neuron cores, at least 1"):
        read({"HF_NUM_CORES": "0"})


def test_compiled_models_are_kept_apart_by_config_compiler_and_shapes(tmp_path):
    def kept(config=LLAMA, **versions):
        return CompiledModels(tmp_path, config, {"neuronx-cc": "2.21", **versions})

    kept().add({"batch_size": 4}, lambda folder: (folder / "model.pt").write_text("graphs"))
    kept().add({"batch_size": 4}, lambda folder: (folder / "model.pt").write_text("again"))
    kept().add({"batch_size": 2}, lambda folder: (folder / "model.pt").write_text("other graphs"))
    found = {shapes["batch_size"]: (folder / "model.pt").read_text() for folder, shapes in kept().entries()}
    assert found == {2: "other graphs", 4: "graphs"}
    assert len(kept({**LLAMA, "_name_or_path": "somewhere", "transformers_version": "9"}).entries()) == 2
    assert kept({**LLAMA, "hidden_size": 128}).entries() == kept(neuronx_cc="2.22").entries() == []


def test_a_model_that_was_not_written_whole_is_not_kept(tmp_path):
    models = CompiledModels(tmp_path, LLAMA, {})

    def fail(folder):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        models.add({"batch_size": 4}, fail)
    assert models.entries() == []
    assert list(models.of_model.iterdir()) == []
