import pytest

from tgi_core.plugins.specs import DeviceProbe, KernelSpec


@pytest.fixture
def fake(make_plugin):
    """A vendor with a device and a kernel."""
    return make_plugin(
        "fake_vendor",
        tgi_probe_device=lambda: DeviceProbe(kind="fake", backend="fake:Backend", products=("Fake 1",)),
        tgi_register_kernels=lambda: [KernelSpec(op="rms_norm", name="fused", target="fake:rms_norm", device="fake")],
    )
