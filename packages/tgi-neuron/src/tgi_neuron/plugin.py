"""What tgi-neuron registers.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tgi_core.plugins import hookimpl
from tgi_core.plugins.specs import DeviceProbe, ModelSpec
from tgi_neuron.families import specs
from tgi_neuron.probe import probe


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """Inferentia and Trainium devices."""
    return probe()


@hookimpl
def tgi_register_models() -> Iterable[ModelSpec]:
    """The families that optimum-neuron compiles."""
    return specs()
