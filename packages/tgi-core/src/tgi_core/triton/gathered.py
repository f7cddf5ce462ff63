"""Prompts that a library attends to, which takes keys and values one after the other instead of in blocks.

Decodes, encoders, cross-attention and what a library cannot do stay with Triton's kernels, whose cache this is.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from tgi_core.attention.base import AttentionSpec
from tgi_core.triton.attention import TritonAttention
from tgi_core.triton.step import GatheredKeys, KeysOf


class GatheredAttention(TritonAttention):
    """Prompts and chunks of `gathers_from` or more are attended to with all that come behind them in their step."""

    @abstractmethod
    def can(self, spec: AttentionSpec) -> bool:
        """Whether the library can attend as a layer does."""

    @abstractmethod
    def attend(self, spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, gathered: GatheredKeys) -> Tensor:
        """q [T, H, D] and keys and values [K, Hkv, D] of the prompts -> [T, H, D]: a query sees those before it."""

    def _attend_gathered(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, out: Tensor, part: KeysOf, gathered: GatheredKeys,
        bias: Tensor | None,
    ) -> None:  # fmt: skip
        spec, first = self.specs[layer], gathered.prompts.first_query
        if bias is not None or not self.can(spec):
            return super()._attend_gathered(layer, q, keys, values, out, part, gathered, bias)
        out[first:] = self.attend(spec, q[first:], keys, values, gathered)
