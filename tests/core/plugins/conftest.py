import sys
import types
from importlib.metadata import EntryPoint

import pytest

from tgi_core.plugins import ENTRY_POINT_GROUP, hookimpl
from tgi_core.plugins.specs import DeviceProbe, KernelSpec


@pytest.fixture
def make_plugin(monkeypatch):
    """Makes a plugin module from hook name -> function, and returns its entry point."""

    def make(name, **hooks):
        module = types.ModuleType(name)
        for hook, function in hooks.items():
            setattr(module, hook, hookimpl(function, specname=hook))
        monkeypatch.setitem(sys.modules, name, module)
        return EntryPoint(name, name, ENTRY_POINT_GROUP)

    return make


@pytest.fixture
def fake(make_plugin):
    """A vendor with a device and a kernel."""
    return make_plugin(
        "fake_vendor",
        tgi_probe_device=lambda: DeviceProbe(kind="fake", backend="fake:Backend", products=("Fake 1",)),
        tgi_register_kernels=lambda: [KernelSpec(op="rms_norm", name="fused", target="fake:rms_norm", device="fake")],
    )
