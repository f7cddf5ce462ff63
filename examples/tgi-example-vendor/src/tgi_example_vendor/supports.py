"""Why a kernel cannot serve a model.  Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tgi_core.kernels.ops import KernelQuery


def attention_supports(query: KernelQuery) -> str:
    """A sentence for a person; "" where it can."""
    if query.encoder_decoder:
        return "has no cross-attention"
    return "has no soft cap" if query.soft_cap else ""
