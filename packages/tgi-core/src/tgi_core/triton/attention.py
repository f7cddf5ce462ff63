"""Paged attention in Triton: the cache, and which kernel runs for which part of a step."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, AttentionSpec, CachePart, StepInput, bias_origin
from tgi_core.kernels.ops import KernelQuery
from tgi_core.triton import tiles
from tgi_core.triton.decode import combine, decode
from tgi_core.triton.prefill import prefill
from tgi_core.triton.step import FixedDecodes, KeysOf, Metadata, StepBuilder, Tiles
from tgi_core.triton.store import store

PACKED_HEADS = 16  #: heads of a group that share a program
MOST_SPLITS = 64
SPLIT_KEYS = 128  #: at least, so that a split is worth its overhead
PROGRAMS = 2  #: on each multiprocessor that keep memory busy
LONG_KEYS = 4096  #: from here on a sequence is split however many there are, as it would hold up the others
LONG_SPLITS = 4


class TritonAttention(AttentionBackend):
    """Keeps keys and values as [blocks, block_size, Hkv, D]; sequences with one query are split over programs."""

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self._chip = Chip(self.device)
        self._caches: dict[CachePart | None, tuple[Tensor, Tensor]] = {}
        self._layers: list[_Layer] = []
        self._cross = False

    def add_layer(self, spec: AttentionSpec) -> int:
        self._layers.append(_Layer(spec, self.dtype, self.block_size, self._chip))
        self._cross |= spec.kind == "cross"
        return super().add_layer(spec)

    def block_bytes(self) -> int:
        elements = sum(2 * part.kv_heads * part.head_size for part in set(self.cache_parts()) if part)
        return elements * self.block_size * self.dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        self._parts = self.cache_parts()
        for part in filter(None, self._parts):
            shape = (num_blocks, self.block_size, part.kv_heads, part.head_size)
            if part not in self._caches or len(self._caches[part][0]) != num_blocks:
                cache = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
                self._caches[part] = (next(cache), next(cache))
        tokens = {layer.tile_tokens for layer in self._layers}
        self._builder = StepBuilder(self.block_size, self.device, sorted(tokens))

    def prepare(self, step: StepInput) -> Metadata:
        return self._builder.build(step, self.variant(len(step.context_lens), int(step.context_lens.max())))

    def variant(self, rows: int, longest: int) -> int:
        """Splits that keep the chip busy and are worth it."""
        programs = rows * min(layer.programs for layer in self._layers)
        wanted = max(PROGRAMS * self._chip.multiprocessors // programs, LONG_SPLITS if longest >= LONG_KEYS else 1)
        worth = -(-longest // SPLIT_KEYS)
        return min(MOST_SPLITS, triton.next_power_of_2(min(wanted, worth)))

    def fixed(self, rows: int, width: int, variant: int) -> FixedDecodes:
        return FixedDecodes(rows, width, variant, self.device, cross=self._cross)

    def forward(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, meta: Metadata, bias: Tensor | None = None
    ) -> Tensor:
        own, spec = self._layers[layer], self.specs[layer]
        q, k, v = (_heads_together(x) for x in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        part = meta[spec.kind]
        if spec.kind == "encoder" or (cache := self._caches.get(self._parts[layer])) is None:
            own.prefill(q, k, v, k.stride(0), v.stride(0), out, part, bias)
            return out
        if part.slots is not None and k is not None:
            store(k, v, *cache, part.slots)
        if part.decodes:
            own.decode(q, k, v, *cache, out, part, bias)
        if part.tiles:
            own.prefill(q, *cache, 0, 0, out, part, bias)
        return out


class Chip:
    """What tiles and splits depend on."""

    def __init__(self, device: torch.device) -> None:
        if device.type == "cpu":  # Triton's interpreter
            self.multiprocessors, self.shared_bytes, self.interprets = 4, 1 << 18, True
            return
        properties: Any = torch.cuda.get_device_properties(device)
        self.multiprocessors, self.interprets = int(properties.multi_processor_count), False
        self.shared_bytes = int(getattr(properties, "shared_memory_per_block_optin", 1 << 16))


class _Layer:
    """How the kernels are launched for one layer."""

    def __init__(self, spec: AttentionSpec, dtype: torch.dtype, block_size: int, chip: Chip) -> None:
        self.spec, self.group = spec, spec.heads // spec.kv_heads
        packed = min(self.group, PACKED_HEADS)
        padded = max(16, triton.next_power_of_2(spec.head_size))
        self.many = tiles.fitting(tiles.PREFILL, padded, dtype.itemsize, chip.shared_bytes)
        self.single = tiles.fitting(tiles.DECODE, padded, dtype.itemsize, chip.shared_bytes)
        self.tile_tokens = self.many.rows // packed
        self.programs = spec.kv_heads * -(-self.group // packed)  #: of one sequence or tile
        self.head = {"H": spec.heads, "D": spec.head_size, "DP": padded}
        self.constants = {
            **self.head,
            "HKV": spec.kv_heads,
            "G": self.group,
            "P": packed,
            "BLOCK_SIZE": block_size,
            "HAS_WINDOW": spec.window is not None,
            "HAS_SOFT_CAP": spec.soft_cap is not None,
            "HAS_SLOPES": spec.alibi_slopes is not None,
            "UPCAST": chip.interprets,
        }
        self._slopes: Tensor | None = None

    def _scores(self, device: torch.device, bias: Tensor | None) -> tuple[Any, ...]:
        """The arguments from `scale` on."""
        spec = self.spec
        if spec.alibi_slopes and self._slopes is None:
            self._slopes = torch.tensor(spec.alibi_slopes, dtype=torch.float32, device=device)
        columns = bias.shape[1] if bias is not None else 0
        origin = bias_origin(spec, columns)
        return spec.scale, spec.soft_cap or 0.0, self._slopes, bias, columns, origin, spec.window or 0

    def prefill(
        self, q: Tensor, keys: Tensor, values: Tensor, k_token: int, v_token: int, out: Tensor, part: KeysOf,
        bias: Tensor | None,
    ) -> None:  # fmt: skip
        """Sequences with more than one query."""
        cut: Tiles | None = part.tiles.get(self.tile_tokens)
        if cut is None:
            return
        prefill[(cut.count, self.programs)](
            q, keys, values, out, cut.sequence, cut.start, part.query_starts, part.lens, part.key_starts, part.tables,
            part.info, q.stride(0), k_token, v_token, *self._scores(q.device, bias), **self.constants, M=self.many.rows,
            N=self.many.keys, WIDTH_AT=part.width_at, PAGED=part.key_starts is None, CAUSAL=self.spec.kind == "causal",
            HAS_BIAS=bias is not None, num_warps=self.many.warps, num_stages=self.many.stages,
        )  # fmt: skip

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, out: Tensor, part: KeysOf,
        bias: Tensor | None,
    ) -> None:  # fmt: skip
        """Sequences with one query."""
        has_new, splits, single, (heads, size) = self.spec.kind == "causal", part.splits, self.single, q.shape[1:]
        partial = sums = None
        if splits > 1:
            partial = torch.empty((part.decodes, heads, splits, size), dtype=torch.float32, device=q.device)
            sums = torch.empty((part.decodes, heads, splits), dtype=torch.float32, device=q.device)
        scores = self._scores(q.device, bias)
        decode[(part.decodes, self.programs, splits)](
            q, k if has_new else None, v if has_new else None, keys, values, out, partial, sums, part.members,
            part.query_starts, part.lens, part.tables, part.info, q.stride(0), k.stride(0) if has_new else 0,
            v.stride(0) if has_new else 0, *scores, **self.constants, M=single.rows, N=single.keys, S=splits,
            WIDTH_AT=part.width_at, HAS_NEW=has_new, HAS_BIAS=bias is not None, num_warps=single.warps,
            num_stages=single.stages,
        )  # fmt: skip
        if splits > 1:
            combine[(part.decodes, heads)](
                partial, sums, out, part.members, part.query_starts, part.lens, scores[-1], **self.head,
                N=single.keys, S=splits, HAS_WINDOW=self.spec.window is not None, num_warps=2,
            )  # fmt: skip


def _heads_together(x: Tensor | None) -> Any:
    """x [T, H, D] with heads side by side; rows may be strided."""
    if x is None or (x.stride(2) == 1 and (x.stride(1) == x.shape[2] or x.shape[1] == 1)):
        return x
    return x.contiguous()
