"""What `tgi plugins`, `kernels`, `models` and `doctor` print."""

import json
import subprocess
import sys

import pytest

from tgi_core import builtin
from tgi_core.config import EngineConfig
from tgi_core.engine.explain import doctor_report, kernels_report, models_report, plugins_report
from tgi_core.errors import ConfigError, ModelNotFound
from tgi_core.plugins.manager import load_plugins
from tgi_core.testing.tiny import make_checkpoint


def wishes(folder, **more):
    return EngineConfig(model_id=str(folder), **more)


@pytest.fixture
def plugins():
    return load_plugins([builtin], entry_points=())


def test_plugins_and_the_device_that_would_be_used(plugins):
    report = plugins_report(plugins)
    assert "tgi-core (built in)" in report
    assert "would use cpu: no hardware plugin is installed; --num-shard divides a model over as many" in report


def test_kernels_of_an_encoder_decoder_that_only_generation_config_tells_how_to_begin(plugins, tmp_path):
    folder = make_checkpoint(tmp_path, "t5")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decoder_start_token_id": None, "bos_token_id": None}))
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 0}))
    assert "T5ForConditionalGeneration" in kernels_report(wishes(folder), plugins)


def test_kernels_of_every_op(plugins):
    lines = kernels_report(None, plugins).splitlines()
    assert ["attention", "native", "cpu", "10", "core"] in [line.split() for line in lines]
    assert ["linear", "reference", "any", "0", "core"] in [line.split() for line in lines]


def test_kernels_of_a_model_with_reasons(plugins, checkpoint):
    report = kernels_report(wishes(checkpoint), plugins)
    assert "packs bfloat16 only, not float32" in report
    assert "no hardware plugin is installed" in report


def test_kernels_of_a_cache_in_float8_with_reasons(plugins, checkpoint):
    report = kernels_report(wishes(checkpoint, kv_cache_dtype="fp8_e5m2"), plugins)
    assert "native: keeps keys and values in the model's dtype, not in fp8_e5m2" in report
    with pytest.raises(ConfigError, match="there is no such format"):
        kernels_report(wishes(checkpoint, kv_cache_dtype="fp4"), plugins)


def test_kernels_of_a_model_that_transformers_runs(plugins, tmp_path):
    report = kernels_report(wishes(make_checkpoint(tmp_path, "mamba")), plugins)
    assert "no installed plugin implements MambaForCausalLM" in report


def test_kernels_of_a_model_that_is_not_there(plugins):
    with pytest.raises(ModelNotFound):
        kernels_report(wishes("/nowhere/at/all"), plugins)


def test_models_by_family_and_device(plugins):
    report = models_report(plugins)
    assert "Code Llama" in report
    assert "Qwen3ForCausalLM" in report
    assert "where its attention can be replaced" in report
    assert "AutoModelForSeq2SeqLM" in report


def test_doctor_knows_the_machine(plugins):
    report = doctor_report(plugins)
    for fact in ("Python", "torch", "processor", "native CPU kernels", "default model"):
        assert fact in report


def test_reports_import_no_torch():
    code = (
        "import sys\n"
        "from tgi_core.engine.explain import doctor_report, kernels_report, models_report, plugins_report\n"
        "plugins_report(); kernels_report(); models_report(); doctor_report()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
