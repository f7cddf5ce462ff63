"""Whether Triton can serve a model; imports neither Triton nor torch."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

from tgi_core.kernels.ops import KernelQuery

LARGEST_HEAD = 256
FLASH_ATTENTION_2_MULTIPLE = 8  #: of features of a head


def supports(query: KernelQuery) -> str:
    """Why no Triton kernel can run."""
    return "" if find_spec("triton") else "Triton is not installed; it comes with PyTorch for GPUs"


def rounded_supports(query: KernelQuery) -> str:
    """Why Triton's products with weights of a few bits cannot run."""
    if query.dtype == "float32":
        return "multiplies bfloat16 and float16, not float32"
    return supports(query)


def attention_supports(query: KernelQuery) -> str:
    """Why Triton's paged attention cannot run."""
    if query.head_size > LARGEST_HEAD:
        return f"takes heads of {LARGEST_HEAD} features at most, not {query.head_size}"
    return supports(query)


def flash_attention_2_supports(query: KernelQuery) -> str:
    """Why FlashAttention-2 cannot take prompts."""
    try:
        metadata.version("flash-attn")
    except metadata.PackageNotFoundError:
        return "not installed; a wheel of flash-attn for this PyTorch makes long prompts faster"
    return library_supports(query, FLASH_ATTENTION_2_MULTIPLE)


def library_supports(query: KernelQuery, multiple: int) -> str:
    """Why a FlashAttention cannot take prompts, whose heads have a multiple of so many features."""
    if query.dtype == "float32":
        return "takes bfloat16 and float16, not float32"
    if query.head_size % multiple:
        return f"takes heads of a multiple of {multiple} features, not {query.head_size}"
    if query.relative_bias:
        return "knows no bias by distance"
    return attention_supports(query)
