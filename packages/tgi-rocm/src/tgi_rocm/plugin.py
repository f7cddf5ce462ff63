"""What tgi-rocm registers.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tgi_core.plugins import hookimpl
from tgi_core.plugins.specs import DeviceProbe, KernelSpec
from tgi_rocm.probe import probe

FLASH_ATTENTION_2 = KernelSpec(
    op="attention",
    name="flash-attn-2",
    target="tgi_core.triton.flash_attention_2:FlashAttention2",
    device="rocm",
    supports="tgi_core.triton.support:flash_attention_2_supports",
    priority=1,
)


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """AMD GPUs."""
    return probe()


@hookimpl
def tgi_register_kernels() -> Iterable[KernelSpec]:
    """Triton's, and Composable Kernel's FlashAttention-2; what has neither runs on PyTorch's operators."""
    from tgi_core.triton.registry import triton_kernels

    return (*triton_kernels("rocm"), FLASH_ATTENTION_2)
