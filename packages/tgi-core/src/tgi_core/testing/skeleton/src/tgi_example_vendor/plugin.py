"""What this package offers.  Imports nothing heavy: `tgi plugins` lists it on machines without the device."""

from __future__ import annotations

import pluggy
from tgi_core.plugins.specs import DeviceProbe, KernelSpec

from tgi_example_vendor.probe import DEVICE, probe

hookimpl = pluggy.HookimplMarker("tgi")
PACKAGE = "tgi_example_vendor"


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """Whether the device is there."""
    return probe()


@hookimpl
def tgi_register_kernels() -> tuple[KernelSpec, ...]:
    """Kernels made for this device; the reference runs where there is none."""
    return (
        *(
            KernelSpec(op=op, name="example", target=f"{PACKAGE}.kernels:{op}", device=DEVICE)
            for op in ("rms_norm", "silu_and_mul")
        ),
        KernelSpec(
            op="attention",
            name="example",
            target=f"{PACKAGE}.attention:ExampleVendorAttention",
            device=DEVICE,
            supports=f"{PACKAGE}.supports:attention_supports",
        ),
    )
