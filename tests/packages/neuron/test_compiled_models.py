"""Which compiled graphs are taken, when they are compiled, and what is said of it."""

import json
import shutil

import pytest
from checkpoints import checkpoint, greedy, open_engine, prompt_of, request, said_by_transformers
from neuronx_distributed.trace.model_builder import ModelBuilder
from optimum.neuron.cache import hub_cache
from optimum.neuron.models.inference.backend.config import NxDNeuronConfig
from optimum.neuron.models.inference.modeling_utils import NeuronModelForCausalLM
from transformers import AutoConfig

from tgi_core.config import EngineConfig
from tgi_core.engine.explain import kernels_report
from tgi_core.errors import ConfigError, DeviceUnavailable, InvalidRequest, WeightsError
from tgi_core.sampling_params import SamplingParams
from tgi_neuron import vendor

PROMPTS = [prompt_of(seed, length) for seed, length in enumerate((3, 20))]


@pytest.fixture
def llama(tmp_path):
    return checkpoint(tmp_path / "llama")


@pytest.fixture
def export(llama, tmp_path):
    """Exports that model as optimum-neuron's users do; its weights are in the folder, divided."""

    def make(**settings):
        import torch

        given = {"batch_size": 2, "sequence_length": 48, "continuous_batching": True, "torch_dtype": torch.float32}
        config = AutoConfig.from_pretrained(llama)
        neuron_config = NxDNeuronConfig(**{**given, "target": "trn1", "fused_qkv": True, **settings})
        model = NeuronModelForCausalLM.export(str(llama), neuron_config, config=config, load_weights=True)
        folder = tmp_path / "exported"
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(llama / name, folder)
        assert not list(folder.glob("*.safetensors"))
        return folder

    return make


def reasons(engine):
    return {reason.setting: (reason.value, reason.why) for reason in engine.info.reasons}


def generate(engine, count=6):
    return [completion.token_ids for completion in engine.generate(PROMPTS, greedy(count))]


def free(folder, **wishes):
    """An engine whose shapes nobody asks for."""
    return open_engine(folder, **{"dtype": None, "max_batch_size": None, "max_total_tokens": None, **wishes})


# ---- compiling ------------------------------------------------------------------------------------------------------


def test_a_model_is_compiled_once_for_its_shapes(llama):
    before = ModelBuilder.compiled
    first = open_engine(llama)
    assert reasons(first)["neuron shapes"][1].startswith("nothing that fits was compiled before; it will be kept in")
    again = open_engine(llama)
    assert ModelBuilder.compiled == before + 1
    assert "the best of 1 kept in" in reasons(again)["neuron shapes"][1]
    assert generate(again) == generate(first) == said_by_transformers(llama, PROMPTS, 6)
    open_engine(llama, max_batch_size=2)
    assert ModelBuilder.compiled == before + 2


def test_graphs_are_kept_for_a_config_whatever_the_weights_are(llama, tmp_path):
    before = ModelBuilder.compiled
    open_engine(llama)
    other = checkpoint(tmp_path / "other", seed=1)
    engine = open_engine(other)
    assert ModelBuilder.compiled == before + 1
    assert generate(engine) == said_by_transformers(other, PROMPTS, 6)


def test_another_config_or_compiler_needs_graphs_of_its_own(llama, tmp_path, monkeypatch):
    before = ModelBuilder.compiled
    open_engine(llama)
    open_engine(checkpoint(tmp_path / "other", rms_norm_eps=1e-3))
    monkeypatch.setattr(vendor, "versions", lambda: {"neuronx-cc": "9.9"})
    open_engine(llama)
    assert ModelBuilder.compiled == before + 3


def test_the_best_of_those_kept_is_taken_where_nobody_asks(llama):
    open_engine(llama, max_batch_size=2, max_total_tokens=128)
    open_engine(llama, max_batch_size=4, max_total_tokens=64)
    engine = free(llama)
    assert (engine.info.max_batch_size, engine.info.max_total_tokens, engine.info.dtype) == (4, 64, "float32")
    value, why = reasons(engine)["neuron shapes"]
    assert value == "4 sequences of 64 tokens, float32, 1 core, sampling on the host"
    assert why.startswith("the best of 2 kept in ")


def test_without_wishes_the_choices_are_explained(llama):
    found = reasons(free(llama))
    assert found["neuron batch_size"] == (
        "4",
        "slots, where nobody says; more take more memory and time for each token",
    )
    assert found["neuron sequence_length"] == ("512", "all that the model computes")
    assert found["neuron dtype"][0] == "float32"
    assert found["neuron sampling"] == ("host", "the host's sampler knows all parameters")
    assert found["neuron cores"] == ("1", "all that there are")


def test_choices_are_explained_before_anything_is_compiled(llama, neuron):
    before = ModelBuilder.compiled
    report = kernels_report(EngineConfig(model_id=str(llama)), neuron)
    assert "neuron shapes" in report
    assert "4 sequences of 512 tokens, float32, 1 core, sampling on the host" in report
    assert "nothing that fits was compiled before" in report
    assert ModelBuilder.compiled == before


def test_the_hubs_cache_is_asked(llama, monkeypatch):
    entries = [
        {"batch_size": b, "sequence_length": s, "tp_degree": c, "torch_dtype": "float32", "target": t, "max_topk": 64,
         "on_device_sampling": True, "continuous_batching": True}
        for b, s, c, t in ((2, 64, 1, "trn1"), (4, 64, 1, "trn1"), (8, 64, 1, "trn2"), (8, 64, 2, "trn1"))
    ]  # fmt: skip
    asked = []
    monkeypatch.setattr(hub_cache, "get_hub_cached_entries", lambda model, task: asked.append(model) or entries)
    engine = free(llama)
    assert asked == [str(llama)]
    assert engine.info.max_batch_size == 4
    assert reasons(engine)["neuron shapes"][1] == "the best of 3 in the hub's cache that are for trn1"
    with pytest.raises(InvalidRequest, match="`seed`"):
        engine.add(request(1, [5], SamplingParams(do_sample=True, seed=1)))


def test_a_failed_compilation_keeps_nothing(llama, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("neuronx-cc: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ModelBuilder, "trace", fail)
        with pytest.raises(ConfigError, match=r"could not be compiled for 4 sequences of 64 tokens.*out of memory"):
            open_engine(llama)
    before = ModelBuilder.compiled
    open_engine(llama)
    assert ModelBuilder.compiled == before + 1


@pytest.mark.parametrize("version", ["", "1.0.post1"])
def test_without_a_compiler_nothing_new_is_served(llama, monkeypatch, version):
    monkeypatch.setattr(vendor, "installed_version", lambda name: version)
    with pytest.raises(ConfigError, match="is not compiled yet, and there is no neuronx-cc; install it from"):
        open_engine(llama)


def test_damaged_graphs_and_weights_are_named(llama, export):
    folder = export()
    shards = next(folder.glob("checkpoint/weights/*.safetensors"))
    whole = shards.read_bytes()
    shards.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"optimum-neuron cannot load these weights .* it reads safetensors"):
        free(folder)
    shards.write_bytes(whole)
    (folder / "model.pt").write_text("damaged")
    with pytest.raises(WeightsError, match=r"model\.pt cannot be loaded .* export the model again, or delete"):
        free(folder)


# ---- variables and flags --------------------------------------------------------------------------------------------


def test_variables_of_text_generation_inference(llama, monkeypatch):
    monkeypatch.setenv("HF_NUM_CORES", "1")
    monkeypatch.setenv("HF_AUTO_CAST_TYPE", "bf16")
    engine = open_engine(llama, dtype=None)
    assert engine.info.dtype == "bfloat16"
    assert len(generate(engine)[0]) == 6


@pytest.mark.parametrize(
    ("variables", "wishes", "message"),
    [
        ({"HF_NUM_CORES": "many"}, {}, "HF_NUM_CORES=many: must be a number of Neuron cores"),
        ({"HF_NUM_CORES": "2"}, {}, "HF_NUM_CORES 2: there are 1 cores; ask for at most"),
        ({"HF_AUTO_CAST_TYPE": "int8"}, {}, "HF_AUTO_CAST_TYPE=int8: must be one of bf16, fp16, fp32"),
        ({"HF_AUTO_CAST_TYPE": "bf16"}, {}, "--dtype float32 and HF_AUTO_CAST_TYPE=bfloat16 contradict each other"),
        ({"TGI_NEURON_SAMPLING": "moon"}, {}, "TGI_NEURON_SAMPLING=moon: must be one of host, device"),
        ({"HF_NUM_CORES": "1"}, {"num_shard": 2}, "--num-shard 2 and HF_NUM_CORES=1 contradict each other"),
        ({}, {"num_shard": 2}, "--num-shard 2: there are 1 cores"),
        ({}, {"max_total_tokens": 600}, "--max-total-tokens 600: the model computes 512 tokens here"),
        ({}, {"max_input_tokens": 64}, r"`max_input_tokens`\(64\) must be < `max_total_tokens`\(64\)"),
        ({}, {"quantize": "int8"}, "--quantize int8: Neuron graphs compute whole weights; leave it out"),
    ],
)
def test_wishes_that_cannot_be_granted(llama, monkeypatch, variables, wishes, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        open_engine(llama, **wishes)


def test_no_core_is_left(llama, monkeypatch):
    monkeypatch.setattr(vendor, "cores", lambda: 0)
    with pytest.raises(DeviceUnavailable, match="look at NEURON_RT_NUM_CORES"):
        open_engine(llama)


# ---- exported models ------------------------------------------------------------------------------------------------


def test_an_exported_model_says_its_shapes(llama, export):
    folder, before = export(), ModelBuilder.compiled
    engine = free(folder)
    assert ModelBuilder.compiled == before
    assert (engine.info.max_batch_size, engine.info.max_total_tokens) == (2, 48)
    assert reasons(engine)["neuron shapes"][1] == f"what {folder} was compiled for"
    assert generate(engine) == said_by_transformers(llama, PROMPTS, 6)
    assert generate(free(folder, max_batch_size=2, max_total_tokens=48, dtype="float32")) == generate(engine)


def test_prompts_that_a_graph_would_cut_are_refused(llama, export):
    engine = free(export(max_context_length=32))
    assert engine.info.max_input_tokens == 32
    with pytest.raises(InvalidRequest, match=r"must have less than 32 tokens\. Given: 33"):
        engine.add(request(1, prompt_of(1, 33), greedy(2)))
    prompt = prompt_of(1, 32)
    assert [engine.generate([prompt], greedy(16))[0].token_ids] == said_by_transformers(llama, [prompt], 16)


@pytest.mark.parametrize(
    ("variables", "wishes", "message"),
    [
        ({}, {"max_batch_size": 4}, "--max-batch-size asks for 4 but the model has 2; leave it out, or name the"),
        ({}, {"max_total_tokens": 32}, "--max-total-tokens asks for 32 but the model has 48"),
        ({"HF_NUM_CORES": "2"}, {}, "HF_NUM_CORES asks for 2 but the model has 1"),
        ({"HF_AUTO_CAST_TYPE": "bf16"}, {}, "HF_AUTO_CAST_TYPE asks for bfloat16 but the model has float32"),
        ({"TGI_NEURON_SAMPLING": "device"}, {}, "TGI_NEURON_SAMPLING asks for device but the model has host"),
        ({}, {"max_batch_size": 1, "max_total_tokens": 4}, "has 2, --max-total-tokens .* has 48; leave them out"),
    ],
)
def test_an_exported_model_that_is_not_what_was_asked_for(export, monkeypatch, variables, wishes, message):
    folder = export()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        free(folder, **wishes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"continuous_batching": False}, "to read 2 prompts at once, so that none can join later; export it with"),
        ({"target": "trn2"}, "was compiled for trn2 and this machine is trn1"),
    ],
)
def test_exported_models_that_cannot_be_served(export, settings, message):
    folder = export()
    file = folder / "neuron_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(ConfigError, match=message):
        free(folder)
