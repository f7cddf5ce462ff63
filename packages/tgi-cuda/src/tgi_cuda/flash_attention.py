"""Whether FlashAttention can serve a model here; imports neither it nor torch."""

from __future__ import annotations

from importlib import metadata

from tgi_core.kernels.ops import KernelQuery
from tgi_core.triton.support import attention_supports
from tgi_cuda.probe import compute_capability

HOPPER = (9, 0)
MULTIPLE = 16  #: of features, that paged keys are copied by


def supports_4(query: KernelQuery) -> str:
    """Why FlashAttention-4 cannot run."""
    try:
        metadata.version("flash-attn-4")
    except metadata.PackageNotFoundError:
        return "not installed; `pip install --pre flash-attn-4` makes long prompts faster on Hopper"
    if (found := compute_capability()) != HOPPER:
        return f"was run on Hopper (compute capability 9.0) only, this GPU has {'.'.join(map(str, found))}"
    if query.dtype == "float32":
        return "takes bfloat16 and float16, not float32"
    if query.head_size % MULTIPLE:
        return f"takes heads of a multiple of {MULTIPLE} features, not {query.head_size}"
    if query.relative_bias:
        return "knows no bias by distance"
    return attention_supports(query)
