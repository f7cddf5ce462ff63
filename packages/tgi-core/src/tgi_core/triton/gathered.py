"""Prompts whose keys and values are copied out of their blocks, for libraries that take them one after the other.

Decodes, encoders, cross-attention and what a library cannot do stay with Triton's kernels, whose cache this is.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from tgi_core.attention.base import AttentionSpec
from tgi_core.attention.cache_dtype import take
from tgi_core.triton.attention import TritonAttention
from tgi_core.triton.step import GatheredKeys, KeysOf, Prompts


class GatheredAttention(TritonAttention):
    """Prompts and chunks of `fewest_queries` or more are attended to with all that come behind them in their step."""

    gathers = True
    fewest_queries: ClassVar[int]  #: of the longest prompt of a step

    @abstractmethod
    def can(self, spec: AttentionSpec) -> bool:
        """Whether the library can attend as a layer does."""

    @abstractmethod
    def attend(
        self, spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, prompts: Prompts, gathered: GatheredKeys
    ) -> Tensor:
        """q [T, H, D] and keys and values [K, Hkv, D] of n prompts -> [T, H, D]: a query sees those before it."""

    def _attend_prompts(
        self, layer: int, q: Tensor, cache: tuple[Tensor, Tensor], out: Tensor, part: KeysOf, bias: Tensor | None
    ) -> None:
        spec, prompts = self.specs[layer], part.prompts
        if bias is not None or prompts is None or prompts.longest < self.fewest_queries or not self.can(spec):
            return super()._attend_prompts(layer, q, cache, out, part, bias)
        gathered = prompts.gathered
        if gathered is None:
            raise ValueError("a step was built without the places of its keys")
        keys, values = (take(stored.flatten(0, 1), gathered.slots, self.dtype) for stored in cache)
        out[prompts.first_query :] = self.attend(spec, q[prompts.first_query :], keys, values, prompts, gathered)
