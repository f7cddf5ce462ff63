"""Which attention libraries can serve a model here; imports neither them nor torch."""

from __future__ import annotations

from importlib import metadata

from tgi_core.device.capabilities import MODEL_DTYPE
from tgi_core.kernels.ops import KernelQuery
from tgi_core.triton import support
from tgi_cuda.probe import compute_capability

TURING = (7, 5)  #: whose matrix units Triton does not use
AMPERE = (8, 0)
HOPPER = (9, 0)
MULTIPLE = 16  #: of features, that paged keys are copied by


def flash_attention_4_supports(query: KernelQuery) -> str:
    """Why FlashAttention-4 cannot run."""
    try:
        metadata.version("flash-attn-4")
    except metadata.PackageNotFoundError:
        return "not installed; `pip install --pre flash-attn-4` makes long prompts faster on Hopper"
    if (found := compute_capability()) != HOPPER:
        return f"was run on Hopper (compute capability 9.0) only, this GPU has {_name(found)}"
    if query.kv_dtype != MODEL_DTYPE:
        return f"takes keys and values in the model's dtype, not in {query.kv_dtype}"
    return support.library_supports(query, MULTIPLE)


def flash_attention_2_supports(query: KernelQuery) -> str:
    """Why FlashAttention-2 cannot run, or should not."""
    found = compute_capability()
    if found < AMPERE:
        return f"needs compute capability 8.0, this GPU has {_name(found)}"
    if found >= HOPPER:
        return f"is made for compute capability 8.x, this GPU has {_name(found)}"
    return support.flash_attention_2_supports(query)


def torch_prompts_supports(query: KernelQuery) -> str:
    """Why prompts are not PyTorch's."""
    if (found := compute_capability()) != TURING:
        return f"is for Turing (compute capability 7.5), whose matrix units Triton does not use, not {_name(found)}"
    return support.attention_supports(query)


def _name(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
