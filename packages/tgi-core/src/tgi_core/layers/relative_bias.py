"""Attention scores that depend on the distance of key and query, by buckets of distances (arXiv 1910.10683)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tgi_core.errors import UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.weights.loader import Source


class RelativeBias(nn.Module):
    """The table [H, R] that `AttentionBackend.forward` takes as `bias`.

    Args:
        heads: of this rank.
        buckets: rows of the checkpoint's weight, whose columns are the heads of all ranks.
        max_distance: all distances from here on share a bucket.
        both_ways: keys may lie behind the query, as an encoder's do.

    Raises:
        UnsupportedModel: there are too few buckets, or more than distances.
    """

    table: Tensor

    def __init__(self, heads: int, buckets: int, max_distance: int, build: BuildContext, *, both_ways: bool) -> None:
        super().__init__()
        if buckets < 4 or max_distance <= buckets:
            raise UnsupportedModel(
                f"config.json cuts distances up to {max_distance} into {buckets} buckets, which cannot be; "
                "it must be 4 at least, and less than the distance"
            )
        self.heads, self.count, self.dtype, self.group = heads, buckets, build.dtype, build.group
        distances = torch.arange(-max_distance, max_distance + 1 if both_ways else 1)
        self.buckets = bucket_of(distances, buckets, max_distance, both_ways)

    def load(self, source: Source) -> None:
        weight = source.read("weight", self.count, self.heads * self.group.size, dtype=self.dtype)
        first = self.heads * self.group.rank
        self.table = weight[self.buckets, first : first + self.heads].T.float().contiguous()


def bucket_of(distances: Tensor, buckets: int, max_distance: int, both_ways: bool) -> Tensor:
    """The bucket of each distance, which is a key's position less its query's.

    One for each small distance, then wider and wider ones; of `both_ways`, half of the buckets are for keys behind.
    """
    first = torch.zeros_like(distances)
    if both_ways:
        buckets //= 2
        first = (distances > 0) * buckets
    distances = distances.abs()
    exact = buckets // 2
    wide = torch.log(distances.float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    wide = (exact + wide.clamp(min=0).long()).clamp(max=buckets - 1)
    return first + torch.where(distances < exact, distances, wide)
