"""The plugin is found, listed without importing PyTorch, and says within a second whether its device is there."""

import os
import subprocess
import sys
import time

import pytest

from tgi_core.device.select import probe_devices
from tgi_core.plugins.specs import resolve

PROBE_S = 1.0
LISTING = """
import sys
from tgi_core import builtin
from tgi_core.device.select import probe_devices
from tgi_core.kernels.select import offered_kernels
from tgi_core.models.select import offered_models
from tgi_core.plugins.manager import load_plugins
plugins = load_plugins([builtin])
probe_devices(plugins), list(offered_kernels(plugins)), list(offered_models(plugins))
print([name for name in ("torch", "triton", "transformers") if name in sys.modules])
"""


def test_every_plugin_is_loaded(vendor):
    assert not [f"{status.name}: {status.detail}" for status in vendor.plugins.failed]


def test_listing_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", LISTING], env=dict(os.environ), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "[]"


def test_the_probe_answers_quickly_and_names_its_products(vendor):
    started = time.perf_counter()
    probes = {probe.kind: probe for probe in probe_devices(vendor.plugins)}
    assert time.perf_counter() - started < PROBE_S * len(probes)
    probe = probes[vendor.probe.kind]
    assert probe.products
    assert all(probe.products)


def test_everything_that_is_offered_can_be_imported(vendor):
    for spec in [*vendor.kernels, *vendor.attentions]:
        assert resolve(spec.target)
        assert not spec.supports or callable(resolve(spec.supports))
    assert issubclass(resolve(vendor.backend.runner), object)


def test_capabilities_agree_with_each_other(vendor):
    capabilities = vendor.capabilities
    assert capabilities.dtypes
    for buckets in (capabilities.batch_buckets, capabilities.token_buckets, capabilities.prefill_buckets):
        assert list(buckets) == sorted(set(buckets))
    if capabilities.static_shapes:
        assert capabilities.batch_buckets, "a device with static shapes declares its batch buckets"
    assert capabilities.chunked_prefill or not capabilities.prefix_caching, (
        "a prompt whose beginning is cached is prefilled from the middle, as a chunk is"
    )
    assert vendor.backend.free_bytes() > 0


def test_memory_comes_back_as_it_went(vendor):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1000, dtype=numpy.int64)
    there = vendor.backend.upload(array)
    download = vendor.backend.download([there, there[::2]])
    download.wait()
    assert download.done()
    assert download.tensors[0].tolist() == array.tolist()
    assert download.tensors[1].tolist() == array[::2].tolist()
