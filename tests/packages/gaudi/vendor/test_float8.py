"""Float8 by Intel Neural Compressor, the real one, on the stand-in's operators: QUANT_CONFIG as its users write it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from habana_standin import compiled

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import ConfigError
from tgi_core.sampling_params import SamplingParams
from tgi_gaudi.optimum.runner import SlotRunner

sys.path.insert(0, str(Path(__file__).parent))
from workload import FLOAT8, FLOAT8_TOKENS, PROMPTS

HERE = Path(__file__).parent
SMALL = {"BATCH_BUCKET_SIZE": "2", "PREFILL_BATCH_BUCKET_SIZE": "2", "PAD_SEQUENCE_TO_MULTIPLE_OF": "16"}
NEAR = 0.5  #: how far float8 may move logits of these models, whose weights are random and wide: norm to norm
needs_compressor = pytest.mark.skipif(find_spec("neural_compressor") is None, reason="neural_compressor_pt is missing")


@pytest.fixture(autouse=True)
def _fresh_book():
    compiled.reset()
    yield
    compiled.reset()


@pytest.fixture(scope="module")
def measured(checkpoints, tmp_path_factory):
    """A folder that has one for each of FLOAT8; see float8_reference.py."""
    folder = tmp_path_factory.mktemp("measured")
    command = [sys.executable, str(HERE / "float8_reference.py"), str(checkpoints[0]), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def make(checkpoints, monkeypatch):
    """make(name, QUANT_CONFIG=file): an engine that serves this checkpoint."""

    def engine(name, **environment):
        for variable, value in {**SMALL, **environment}.items():
            monkeypatch.setenv(variable, str(value))
        limits = {"dtype": "bfloat16", "max_batch_size": 4, "max_input_tokens": 40, "max_total_tokens": 96}
        return Engine(EngineConfig(model_id=str(checkpoints[0] / name), device="gaudi", **limits))

    return engine


@needs_compressor
@pytest.mark.parametrize("name", FLOAT8)
def test_tokens_are_those_of_the_compressor_in_shapes_that_were_compiled_once(measured, make, name):
    folder = measured / name
    expected = json.loads((folder / "expected.json").read_text())
    engine = make(name, QUANT_CONFIG=folder / "quantize.json")
    assert isinstance(engine.runner, SlotRunner)
    compiled.close()
    found = engine.generate(PROMPTS, SamplingParams(max_new_tokens=FLOAT8_TOKENS, ignore_eos=True))
    assert [completion.token_ids for completion in found] == expected["tokens"]
    assert set(compiled.captures.values()) == {1}
    own = engine.runner.model.own
    plain = {weight for weight in own.parameters() if weight.dim() == 2 and weight.dtype != torch.float8_e4m3fn}
    assert plain == {own.get_input_embeddings().weight, own.get_output_embeddings().weight}
    assert max(expected["errors"]) < NEAR


@needs_compressor
def test_measuring_is_refused_with_where_it_is_done(measured, make):
    with pytest.raises(ConfigError, match="measures, which is done before a model is served"):
        make("llama", QUANT_CONFIG=measured / "llama/measure.json")


@needs_compressor
def test_what_the_compressor_does_not_take_is_named(make, tmp_path):
    (tmp_path / "quantize.json").write_text(json.dumps({"mode": "QUANTIZE", "dump_stats_path": str(tmp_path / "none")}))
    with pytest.raises(ConfigError, match=r"QUANT_CONFIG=.*quantize.json: "):
        make("llama", QUANT_CONFIG=tmp_path / "quantize.json")


def test_without_the_compressor_it_is_refused(make, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "neural_compressor", None)
    (tmp_path / "quantize.json").write_text("{}")
    with pytest.raises(ConfigError, match="float8 needs Intel Neural Compressor"):
        make("llama", QUANT_CONFIG=tmp_path / "quantize.json")


@needs_compressor
def test_models_of_core_are_refused(make, tmp_path):
    (tmp_path / "quantize.json").write_text("{}")
    with pytest.raises(ConfigError, match="float8 is for optimum-habana's models, and core's runs this one: "):
        make("opt", QUANT_CONFIG=tmp_path / "quantize.json")


@needs_compressor
@pytest.mark.parametrize(
    ("name", "environment", "reason"),
    [
        ("falcon", {}, "FalconForCausalLM in float8 has not been compared with the compressor's own"),
        ("mixtral", {}, "MixtralForCausalLM in float8 has not been compared"),
        ("llama", {"USE_FLASH_ATTENTION": "true"}, "flash attention in float8 has not been compared"),
    ],
)
def test_what_was_not_compared_is_refused(make, tmp_path, name, environment, reason):
    (tmp_path / "quantize.json").write_text("{}")
    with pytest.raises(ConfigError, match=reason):
        make(name, QUANT_CONFIG=tmp_path / "quantize.json", **environment)
