"""What tgi-neuron registers.  Imports nothing heavy."""

from __future__ import annotations

import dataclasses

from tgi_core.plugins import hookimpl
from tgi_core.plugins.specs import DeviceProbe
from tgi_neuron.probe import probe


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """Inferentia and Trainium devices.  Until this package has a backend for them, they are named but not offered."""
    found = probe()
    if not found.available:
        return found
    reason = f"{', '.join(found.products)}: found, but this version of tgi-neuron has no backend yet; use --device cpu"
    return dataclasses.replace(found, products=(), reason=reason)
