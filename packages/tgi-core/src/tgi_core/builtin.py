"""The core's own plugin: it uses the hooks that everybody uses."""

from __future__ import annotations

from collections.abc import Iterable

from tgi_core.cpu import processor
from tgi_core.plugins import hookimpl
from tgi_core.plugins.specs import DeviceProbe, KernelSpec, LogitsProcessorSpec, ModelSpec, QuantizationSpec

CPU_BACKEND = "tgi_core.cpu.backend:CpuBackend"


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """The CPU can always be used."""
    return DeviceProbe(kind="cpu", backend=CPU_BACKEND, products=(processor.product(),), divisible=True)


@hookimpl
def tgi_register_kernels() -> Iterable[KernelSpec]:
    """The reference of every op, and the CPU's own."""
    from tgi_core.kernels.registry import KERNELS

    return KERNELS


@hookimpl
def tgi_register_models() -> Iterable[ModelSpec]:
    """The model families: written for every device, measured on the CPU."""
    from tgi_core.models.families import FAMILIES, ON_CPU

    return (*FAMILIES, *ON_CPU)


@hookimpl
def tgi_register_quantization() -> Iterable[QuantizationSpec]:
    """What is quantised while it loads."""
    from tgi_core.quantization.registry import QUANTIZATIONS

    return QUANTIZATIONS


@hookimpl
def tgi_register_logits_processors() -> Iterable[LogitsProcessorSpec]:
    """TGI's penalties and filters."""
    from tgi_core.sampling.processors.registry import LOGITS_PROCESSORS

    return LOGITS_PROCESSORS
