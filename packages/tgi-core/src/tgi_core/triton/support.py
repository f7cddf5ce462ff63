"""Whether Triton can serve a model; imports neither Triton nor torch."""

from __future__ import annotations

from importlib.util import find_spec

from tgi_core.kernels.ops import KernelQuery

LARGEST_HEAD = 256


def supports(query: KernelQuery) -> str:
    """Why no Triton kernel can run."""
    return "" if find_spec("triton") else "Triton is not installed; it comes with PyTorch for GPUs"


def attention_supports(query: KernelQuery) -> str:
    """Why Triton's paged attention cannot run."""
    if query.head_size > LARGEST_HEAD:
        return f"takes heads of {LARGEST_HEAD} features at most, not {query.head_size}"
    return supports(query)
