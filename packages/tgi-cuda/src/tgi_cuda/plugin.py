"""What tgi-cuda registers.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tgi_core.plugins import hookimpl
from tgi_core.plugins.specs import DeviceProbe, KernelSpec, ModelSpec
from tgi_cuda.probe import probe


def _attention(name: str, target: str, supports: str, priority: int) -> KernelSpec:
    return KernelSpec(
        op="attention",
        name=name,
        target=target,
        device="cuda",
        supports=f"tgi_cuda.attention:{supports}",
        priority=priority,
    )


ATTENTION = (
    _attention("flash-attn-4", "tgi_cuda.flash_attention_4:FlashAttention4", "flash_attention_4_supports", 3),
    _attention("flash-attn-2", "tgi_core.triton.flash_attention_2:FlashAttention2", "flash_attention_2_supports", 2),
    _attention("torch-prompts", "tgi_core.triton.torch_prompts:TorchPrompts", "torch_prompts_supports", 1),
)


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """NVIDIA GPUs."""
    return probe()


@hookimpl
def tgi_register_kernels() -> Iterable[KernelSpec]:
    """Triton's and other libraries'; what has none runs on PyTorch's operators."""
    from tgi_core.triton.registry import triton_kernels

    return (*triton_kernels("cuda"), *ATTENTION)


@hookimpl
def tgi_register_models() -> Iterable[ModelSpec]:
    """The families of core that have been run on a GPU."""
    from tgi_cuda.models import MODELS

    return MODELS
