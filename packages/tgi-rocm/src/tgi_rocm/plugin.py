"""What tgi-rocm registers.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tgi_core.plugins import hookimpl
from tgi_core.plugins.specs import DeviceProbe, KernelSpec
from tgi_rocm.probe import probe


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """AMD GPUs."""
    return probe()


@hookimpl
def tgi_register_kernels() -> Iterable[KernelSpec]:
    """Triton's; what it has not runs on PyTorch's operators."""
    from tgi_core.triton.registry import triton_kernels

    return triton_kernels("rocm")
