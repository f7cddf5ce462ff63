"""FlashAttention-4 (`flash_attn.cute`) for long prompts; see `attention.flash_attention_4_supports` for where.

The cache is that of Triton's kernels, which serve everything else: decodes, shorter prompts (their steps are recorded),
ALiBi, encoders and cross-attention.
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor

from tgi_core.attention.base import AttentionSpec
from tgi_core.kernels.ops import KernelQuery
from tgi_core.triton.gathered import GatheredAttention
from tgi_core.triton.step import GatheredKeys, KeysOf, Prompts

log = logging.getLogger(__name__)

_Kind = tuple[int, int, bool, float | None]


class FlashAttention4(GatheredAttention):
    """Prompts and chunks of `gathers_from` or more; where they have too many keys to copy, these are read in blocks."""

    gathers_from = 2048  #: from here on it is faster than Triton

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self._compiled: set[_Kind] = set()

    def allocate(self, num_blocks: int) -> None:
        """Create the cache, and compile for each kind of layer: seconds each, which no request should wait for."""
        super().allocate(num_blocks)
        for layer, spec in enumerate(self.specs):
            if spec.kind == "causal" and spec.alibi_slopes is None and _kind(spec) not in self._compiled:
                try:
                    self._compile(layer)
                except Exception as error:
                    log.warning("FlashAttention-4 cannot run (%s: %s); Triton does", type(error).__name__, error)
                    return
                self._compiled.add(_kind(spec))

    def _compile(self, layer: int) -> None:
        """Attend in both ways, as prompts do: queries lie beside keys and values."""
        spec, cache, tokens = self.specs[layer], self._caches[self._parts[layer]], self.gathers_from
        heads = spec.heads + 2 * spec.kv_heads
        qkv = torch.zeros((tokens, heads, spec.head_size), dtype=self.dtype, device=self.device)
        q, (k, v) = qkv[:, : spec.heads], qkv[:, spec.heads :].chunk(2, dim=1)
        width = -(-tokens // self.block_size)
        ints = torch.zeros(2 + width, dtype=torch.int32, device=self.device)
        ints[1] = tokens
        prompts = Prompts(first=0, first_query=0, starts=ints[:2], lens=(tokens,), width=width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about arguments that the compiler takes as constants
            self.attend(spec, q, k, v, GatheredKeys(prompts, ints[:2], None, (tokens,)))
            _attend(spec, q, *cache, prompts, seqused_k=ints[1:2], page_table=ints[2:].unsqueeze(0))

    def can(self, spec: AttentionSpec) -> bool:
        return _kind(spec) in self._compiled

    def attend(self, spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, gathered: GatheredKeys) -> Tensor:
        starts = gathered.starts[gathered.prompts.first :]
        return _attend(spec, q, keys, values, gathered.prompts, cu_seqlens_k=starts, max_seqlen_k=gathered.longest)

    def _attend_prompts(
        self, layer: int, q: Tensor, cache: tuple[Tensor, Tensor], out: Tensor, part: KeysOf, bias: Tensor | None
    ) -> None:
        spec, prompts = self.specs[layer], part.prompts
        if bias is not None or prompts is None or prompts.longest < self.gathers_from or not self.can(spec):
            return super()._attend_prompts(layer, q, cache, out, part, bias)
        first, width = prompts.first, prompts.width
        places = {"seqused_k": part.lens[first:], "page_table": part.tables.view(-1, width)[first:]}
        out[prompts.first_query :] = _attend(spec, q[prompts.first_query :], *cache, prompts, **places)


def _kind(spec: AttentionSpec) -> _Kind:
    """What is compiled anew for."""
    return spec.heads // spec.kv_heads, spec.head_size, spec.window is not None, spec.soft_cap


def _attend(
    spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, prompts: Prompts, **places: Tensor | int
) -> Tensor:
    """q [T, H, D] of n prompts, keys and values where `places` says -> [T, H, D]"""
    from flash_attn.cute import flash_attn_varlen_func

    out: Tensor = flash_attn_varlen_func(
        q,
        keys,
        values,
        cu_seqlens_q=prompts.starts,
        max_seqlen_q=prompts.longest,
        softmax_scale=spec.scale,
        causal=True,
        window_size=(spec.window - 1, 0) if spec.window is not None else (None, None),
        softcap=spec.soft_cap or 0.0,
        **places,
    )[0]
    return out
