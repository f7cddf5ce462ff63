"""Tokens that may not follow.  A program handles BLOCK tokens of one row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tgi_core.kernels.reference.sample import check_bitmask
from tgi_core.triton.launch import Kernel
from tgi_core.triton.overlap import follow

BLOCK, WORD = 4096, 32


@triton.jit
def _apply_bitmask(
    logits, allowed, size: tl.constexpr, row_stride: tl.constexpr, words: tl.constexpr, WORD: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Logits are not read."""
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    word = tl.load(allowed + row * words + columns // WORD, mask=inside, other=0)
    hidden = inside & (((word >> (columns % WORD)) & 1) == 0)
    tl.store(logits + row * row_stride + columns, float("-inf"), mask=hidden)


_APPLY_BITMASK = Kernel(_apply_bitmask)


def apply_bitmask(logits: Tensor, allowed: Tensor) -> Tensor:
    """See `Kernels.apply_bitmask`."""
    check_bitmask(logits, allowed)
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    rows, size = logits.shape
    if rows:
        words = triton.cdiv(size, WORD)
        allowed = allowed[:, :words].contiguous()
        constants = {"size": size, "row_stride": logits.stride(0), "words": words, "WORD": WORD, "BLOCK": BLOCK}
        _APPLY_BITMASK.launch((rows, triton.cdiv(size, BLOCK), 1), (logits, allowed), constants)
    return logits
