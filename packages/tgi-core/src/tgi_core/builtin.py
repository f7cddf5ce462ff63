"""The core's own plugin: it uses the hooks that everybody uses."""

from __future__ import annotations

import platform
from collections.abc import Iterable

from tgi_core.plugins import hookimpl
from tgi_core.plugins.specs import DeviceProbe, KernelSpec, ModelSpec

CPU_BACKEND = "tgi_core.cpu.backend:CpuBackend"


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """The CPU can always be used."""
    return DeviceProbe(kind="cpu", backend=CPU_BACKEND, products=(processor_name(),))


@hookimpl
def tgi_register_kernels() -> Iterable[KernelSpec]:
    """The reference of every op, and the CPU's own."""
    from tgi_core.kernels.registry import KERNELS

    return KERNELS


@hookimpl
def tgi_register_models() -> Iterable[ModelSpec]:
    """The model families that are written for every device."""
    from tgi_core.models.families import FAMILIES

    return FAMILIES


def processor_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The processor's own name, as "Intel(R) Xeon(R) Platinum 8480+"; the architecture's where it has none."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name" and value.strip():
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"
