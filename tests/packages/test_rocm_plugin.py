"""What tgi-rocm registers, and how it is chosen."""

import pytest

from tgi_core import builtin
from tgi_core.device.capabilities import FLOAT8
from tgi_core.kernels.ops import KernelQuery
from tgi_core.kernels.select import select_kernels
from tgi_core.models.select import select_model
from tgi_core.plugins.manager import load_plugins
from tgi_rocm import plugin
from tgi_rocm.chips import REFUSED_KV_DTYPES, REFUSED_QUANTIZATIONS


@pytest.fixture(scope="module")
def plugins():
    return load_plugins([builtin, plugin], [])


def test_triton_is_chosen_windows_included(plugins):
    pytest.importorskip("triton", reason="Triton is not installed")
    query = KernelQuery(device="rocm", dtype="bfloat16", head_size=128, block_size=32, sliding_window=True)
    _, choices = select_kernels(plugins, query)
    ops = ("attention", "add_rms_norm", "layer_norm", "greedy", "linear_int8", "linear_int4", "linear_affine")
    assert {choices[op].spec.name for op in ops} == {"triton"}


def test_float8_of_keys_and_values_is_refused_where_there_is_none():
    assert REFUSED_KV_DTYPES.keys() == REFUSED_QUANTIZATIONS.keys()
    assert set(REFUSED_KV_DTYPES["gfx90a"]) == set(FLOAT8)
    assert not REFUSED_KV_DTYPES["gfx942"]


def test_no_family_is_called_optimised_before_it_has_run_on_a_gpu(plugins):
    assert select_model(plugins, "LlamaForCausalLM", "rocm").device == "any"
