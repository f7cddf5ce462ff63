import os
import subprocess
import sys
import time
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tgi_core.plugins import ENTRY_POINT_GROUP
from tgi_core.plugins.manager import load_plugins

PACKAGES = Path(__file__).parents[2] / "packages"
VENDORS = ("cuda", "gaudi", "neuron", "rocm")


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_entry_point_is_declared(vendor):
    project = tomllib.loads((PACKAGES / f"tgi-{vendor}" / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][ENTRY_POINT_GROUP] == {vendor: f"tgi_{vendor}.plugin"}


def test_all_vendors_load_side_by_side_and_answer_in_a_second_each():
    started = time.monotonic()
    plugins = load_plugins((), [EntryPoint(v, f"tgi_{v}.plugin", ENTRY_POINT_GROUP) for v in VENDORS])
    probes = [probe for _, probe in plugins.collect("tgi_probe_device")]
    assert time.monotonic() - started < len(VENDORS)
    assert plugins.failed == []
    assert [probe.kind for probe in probes] == list(VENDORS)
    assert all(probe.products or probe.reason for probe in probes)


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_plugin_imports_no_torch(vendor):
    code = f"import sys, tgi_{vendor}.plugin as p; p.tgi_probe_device(); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES / f"tgi-{vendor}" / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_every_package_carries_the_licence():
    licence = (PACKAGES.parent / "LICENSE").read_text()
    for package in PACKAGES.glob("tgi-*"):
        assert (package / "LICENSE").read_text() == licence
