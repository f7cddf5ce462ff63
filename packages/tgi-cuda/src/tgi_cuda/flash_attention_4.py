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
from tgi_core.triton.attention import TritonAttention
from tgi_core.triton.step import KeysOf, Prompts

log = logging.getLogger(__name__)

FEWEST_QUERIES = 2048  #: of the longest prompt of a step, from which on it is faster than Triton

_Kind = tuple[int, int, bool, float | None]


class FlashAttention4(TritonAttention):
    """Prompts and chunks of FEWEST_QUERIES or more are attended to with all that come behind them in their step."""

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
        """Attend once, as prompts do: queries lie beside keys and values."""
        spec, cache, width = self.specs[layer], self._caches[self._parts[layer]], -(-FEWEST_QUERIES // self.block_size)
        heads = spec.heads + 2 * spec.kv_heads
        qkv = torch.zeros((FEWEST_QUERIES, heads, spec.head_size), dtype=self.dtype, device=self.device)
        ints = torch.zeros(2 + width, dtype=torch.int32, device=self.device)
        ints[1] = FEWEST_QUERIES
        prompts = Prompts(first=0, first_query=0, starts=ints[:2], lens=(FEWEST_QUERIES,), width=width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about arguments that the compiler takes as constants
            _attend(spec, qkv[:, : spec.heads], cache, prompts, ints[1:2], ints[2:].unsqueeze(0))

    def _attend_prompts(
        self, layer: int, q: Tensor, cache: tuple[Tensor, Tensor], out: Tensor, part: KeysOf, bias: Tensor | None
    ) -> None:
        spec, prompts = self.specs[layer], part.prompts
        if bias is not None or prompts is None or prompts.longest < FEWEST_QUERIES or _kind(spec) not in self._compiled:
            return super()._attend_prompts(layer, q, cache, out, part, bias)
        lens, tables = part.lens[prompts.first :], part.tables.view(-1, prompts.width)[prompts.first :]
        out[prompts.first_query :] = _attend(spec, q[prompts.first_query :], cache, prompts, lens, tables)


def _kind(spec: AttentionSpec) -> _Kind:
    """What is compiled anew for."""
    return spec.heads // spec.kv_heads, spec.head_size, spec.window is not None, spec.soft_cap


def _attend(
    spec: AttentionSpec, q: Tensor, cache: tuple[Tensor, Tensor], prompts: Prompts, lens: Tensor, tables: Tensor
) -> Tensor:
    """(q [T, H, D] of n prompts, keys of each [n], their blocks [n, width]) -> [T, H, D]"""
    from flash_attn.cute import flash_attn_varlen_func

    out: Tensor = flash_attn_varlen_func(
        q,
        *cache,
        cu_seqlens_q=prompts.starts,
        seqused_k=lens,
        page_table=tables,
        max_seqlen_q=prompts.longest,
        softmax_scale=spec.scale,
        causal=True,
        window_size=(spec.window - 1, 0) if spec.window is not None else (None, None),
        softcap=spec.soft_cap or 0.0,
    )[0]
    return out
