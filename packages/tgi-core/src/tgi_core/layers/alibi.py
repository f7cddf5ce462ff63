"""Attention with linear biases."""

from __future__ import annotations

import math


def alibi_slopes(heads: int, bias_max: float = 8.0) -> tuple[float, ...]:
    """One slope per head (arXiv 2108.12409): a geometric series, and for head counts that are no power of two every
    other member of the next longer series after it."""
    nearest = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-bias_max * (i + 1) / nearest) for i in range(nearest)]
    longer = [2 ** (-bias_max * (i + 1) / (2 * nearest)) for i in range(2 * nearest)]
    return tuple(slopes + longer[::2][: heads - nearest])
