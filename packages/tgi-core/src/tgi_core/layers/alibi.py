"""Attention with linear biases."""

from __future__ import annotations

import math

from tgi_core.distributed.group import Group


def alibi_slopes(heads: int, group: Group, bias_max: float = 8.0) -> tuple[float, ...]:
    """The slopes of this rank's `heads` among those of all ranks."""
    return _slopes(heads * group.size, bias_max)[heads * group.rank : heads * (group.rank + 1)]


def _slopes(heads: int, bias_max: float) -> tuple[float, ...]:
    """One slope per head (arXiv 2108.12409): a geometric series, and for head counts that are no power of two every
    other member of the next longer series after it."""
    nearest = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-bias_max * (i + 1) / nearest) for i in range(nearest)]
    longer = [2 ** (-bias_max * (i + 1) / (2 * nearest)) for i in range(2 * nearest)]
    return tuple(slopes + longer[::2][: heads - nearest])
