"""What tgi-cuda registers.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tgi_core.plugins import hookimpl
from tgi_core.plugins.specs import DeviceProbe, KernelSpec, ModelSpec
from tgi_cuda.probe import probe

FLASH_ATTENTION_4 = KernelSpec(
    op="attention",
    name="flash-attn-4",
    target="tgi_cuda.flash_attention_4:FlashAttention4",
    device="cuda",
    supports="tgi_cuda.flash_attention:supports_4",
    priority=1,
)


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """NVIDIA GPUs."""
    return probe()


@hookimpl
def tgi_register_kernels() -> Iterable[KernelSpec]:
    """Triton's and FlashAttention; what has neither runs on PyTorch's operators."""
    from tgi_core.triton.registry import triton_kernels

    return (*triton_kernels("cuda"), FLASH_ATTENTION_4)


@hookimpl
def tgi_register_models() -> Iterable[ModelSpec]:
    """The families of core that have been run on a GPU."""
    from tgi_cuda.models import MODELS

    return MODELS
