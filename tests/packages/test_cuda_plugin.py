"""What tgi-cuda registers, and how it is chosen."""

import pytest

from tgi_core import builtin
from tgi_core.device.capabilities import FLOAT8
from tgi_core.kernels.ops import KernelQuery
from tgi_core.kernels.select import select_kernels
from tgi_core.models.families import FAMILIES
from tgi_core.models.select import select_model
from tgi_core.plugins.manager import load_plugins
from tgi_core.triton import support
from tgi_cuda import plugin
from tgi_cuda.float8 import refused_kv_dtypes


@pytest.fixture(scope="module")
def plugins():
    return load_plugins([builtin, plugin], [])


def query(**changes):
    return KernelQuery(**{"device": "cuda", "dtype": "bfloat16", "head_size": 128, "block_size": 32, **changes})


def test_triton_is_chosen_where_it_is_installed(plugins, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    _, choices = select_kernels(plugins, query())
    assert (
        choices["attention"].spec.name == choices["add_rms_norm"].spec.name == choices["greedy"].spec.name == "triton"
    )
    assert {choices[f"linear_{kind}"].spec.name for kind in ("int8", "int4", "affine")} == {"triton"}
    assert any("made for this device" in reason for reason in choices["attention"].rejected)
    assert any("pip install --pre flash-attn-4" in reason for reason in choices["attention"].rejected)


def test_float32_is_no_matter_of_weights_in_a_few_bits(plugins):
    pytest.importorskip("triton", reason="Triton is not installed")
    _, choices = select_kernels(plugins, query(dtype="float32"))
    assert choices["linear_int8"].spec.name == "reference"
    assert any("bfloat16 and float16, not float32" in reason for reason in choices["linear_int8"].rejected)


def test_the_reference_serves_what_triton_cannot_and_says_why(plugins, monkeypatch):
    monkeypatch.setattr(support, "find_spec", lambda name: None)
    _, choices = select_kernels(plugins, query())
    assert choices["attention"].spec.name == "reference"
    assert any("Triton is not installed" in reason for reason in choices["attention"].rejected)
    monkeypatch.undo()
    _, choices = select_kernels(plugins, query(head_size=288), {"linear": "reference"})
    assert any("256" in reason for reason in choices["attention"].rejected)


def test_float8_is_refused_by_gpus_that_do_not_convert_it():
    assert refused_kv_dtypes((9, 0)) == refused_kv_dtypes((8, 9)) == {}
    assert list(refused_kv_dtypes((8, 6))) == ["fp8_e4m3fn"]
    assert "8.9, this GPU has 8.6; use fp8_e5m2" in refused_kv_dtypes((8, 6))["fp8_e4m3fn"]
    assert set(refused_kv_dtypes((7, 5))) == set(FLOAT8)


def test_triton_reads_keys_and_values_in_float8(plugins):
    pytest.importorskip("triton", reason="Triton is not installed")
    _, choices = select_kernels(plugins, query(kv_dtype="fp8_e5m2"))
    assert choices["attention"].spec.name == "triton"


def test_deterministic_steps_have_kernels_of_their_own(plugins):
    pytest.importorskip("triton", reason="Triton is not installed")
    _, choices = select_kernels(plugins, query(deterministic=True))
    chosen = {op: choice.spec.name for op, choice in choices.items()}
    assert (chosen["linear"], chosen["experts"], chosen["attention"]) == ("triton-fixed", "triton-fixed", "triton")
    assert (chosen["gelu"], chosen["linear_int4"]) == ("triton", "none")
    assert "flash-attn-4: a row's result may depend on the rows beside it" in choices["attention"].rejected


def test_other_devices_have_families_of_their_own(plugins):
    assert select_model(plugins, "LlamaForCausalLM", "cuda").device == "cuda"
    assert select_model(plugins, "LlamaForCausalLM", "cpu").device == "cpu"
    assert select_model(plugins, "LlamaForCausalLM", "rocm").device == "any"


def test_every_family_is_registered_for_the_gpu(plugins):
    for family in FAMILIES:
        for architecture in family.architectures:
            assert select_model(plugins, architecture, "cuda").device == "cuda"
