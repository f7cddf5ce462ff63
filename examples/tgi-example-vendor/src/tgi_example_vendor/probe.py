"""Whether the device can be used: answers at once, without opening it."""

from __future__ import annotations

import os

from tgi_core.plugins.specs import DeviceProbe

DEVICE = "example-vendor"
SWITCH = "EXAMPLE_VENDOR_DEVICES"  #: how many devices are pretended; a real probe looks into /sys or asks the driver


def probe() -> DeviceProbe:
    """The products that are there, or why there are none."""
    count = os.environ.get(SWITCH, "1")
    if not count.isdigit():
        return DeviceProbe(kind=DEVICE, backend=BACKEND, reason=f"{SWITCH}={count} is no number of devices")
    products = ("Example One (pretended)",) * int(count)
    return DeviceProbe(kind=DEVICE, backend=BACKEND, products=products, reason=f"{SWITCH} is 0" if not products else "")


BACKEND = "tgi_example_vendor.backend:ExampleVendorBackend"
