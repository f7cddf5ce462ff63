"""Paged attention in Triton: the cache, and which kernel runs for which part of a step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import triton
from torch import Tensor

from tgi_core.attention.base import (
    AttentionBackend,
    AttentionSpec,
    CachePart,
    FixedMetadata,
    Rotation,
    StepInput,
    bias_origin,
)
from tgi_core.attention.cache_dtype import take
from tgi_core.kernels.ops import KernelQuery
from tgi_core.triton import tiles
from tgi_core.triton.arrivals import arrivals
from tgi_core.triton.chip import Chip
from tgi_core.triton.decode import combine, decode
from tgi_core.triton.fixed import FixedDecodes, FixedMixtures, FixedSources
from tgi_core.triton.in_order import SPLIT, attend_in_order, combine_in_order
from tgi_core.triton.launch import Kernel, in_tiles, is_in_tiles
from tgi_core.triton.overlap import overlaps
from tgi_core.triton.prefill import prefill
from tgi_core.triton.scores import MOST_HEADS
from tgi_core.triton.step import GatheredKeys, KeysOf, Metadata, StepBuilder
from tgi_core.triton.store import store

PREFILL, DECODE, COMBINE = Kernel(prefill), Kernel(decode), Kernel(combine)
IN_ORDER, COMBINE_IN_ORDER = Kernel(attend_in_order, contracts=False), Kernel(combine_in_order, contracts=False)

MOST_SPLITS = 64
SPLIT_KEYS = 256  #: at least, so that a split of one of several sequences is worth it
WHOLE_KEYS = 256  #: at most, of a sequence that is not split, as adding up takes longer
PROGRAMS = 2  #: on each multiprocessor that keep memory busy
LONG_KEYS = 4096  #: from here on a sequence is split however many there are, as it would hold up the others
LONG_SPLITS = 4
MOST_ROW_SPLITS = 1024  #: of all rows of a step, that wait in memory to be taken together in order


class TritonAttention(AttentionBackend):
    """Keeps keys and values as [blocks, block_size, Hkv, D]; sequences with one query are split over programs.

    If steps are to be deterministic, all queries are attended to by one kernel (see `in_order`).
    """

    #: queries of the longest prompt of a step, from which on keys are copied out of their blocks; those of prompts that
    #: begin lie beside the queries already.  Measured on an H100: reading blocks takes 1.1 to 1.2 times as long
    gathers_from = 1024
    rotates = keeps_sources = can_be_ahead = True

    def __init__(self, query: KernelQuery) -> None:
        super().__init__(query)
        self._chip = Chip(self.device)
        self._caches: dict[CachePart | None, tuple[Tensor, Tensor]] = {}
        self._layers: list[_Layer] = []
        self._cross, self._in_order, self._biased = False, query.deterministic, query.relative_bias

    def add_layer(self, spec: AttentionSpec) -> int:
        layer = _Layer(spec, self.dtype, self.block_size, self._chip, in_order=self._in_order, biased=self._biased)
        self._layers.append(layer)
        self._cross |= spec.kind == "cross"
        return super().add_layer(spec)

    def allocate(self, num_blocks: int) -> None:
        self._parts = self.cache_parts()
        for part in filter(None, self._parts):
            shape = (num_blocks, self.block_size, part.kv_heads, part.head_size)
            if part not in self._caches or len(self._caches[part][0]) != num_blocks:
                cache = (torch.zeros(shape, dtype=self.cache_dtype, device=self.device) for _ in range(2))
                self._caches[part] = (next(cache), next(cache))
        tokens = {tile.rows // layer.packed for layer in self._layers for tile in (layer.many, layer.gathered)}
        few_tokens = {layer.few.rows // layer.packed for layer in self._layers}
        programs = max(layer.programs for layer in self._layers)
        self._builder = StepBuilder(
            self.block_size,
            self.device,
            sorted(tokens),
            few_tokens=sorted(few_tokens) if self._chip.publishes and not self._in_order else (),
            most_parts=PROGRAMS * self._chip.multiprocessors // programs,
            gathers_from=None if self._in_order else self.gathers_from,
            keeps_dtype=self.cache_dtype == self.dtype,
            in_order=self._in_order,
        )

    def prepare(self, step: StepInput) -> Metadata:
        rows, longest = len(step.context_lens), int(step.context_lens.max())
        variant = self.mixture_variant if step.num_tokens > rows else self.variant
        return self._builder.build(step, variant(rows, longest))

    def variant(self, rows: int, longest: int) -> int:
        """Splits that keep the chip busy and are worth it."""
        programs = rows * min(layer.programs for layer in self._layers)
        if self._in_order:
            count = triton.next_power_of_2(-(-longest // SPLIT))
            return 1 if programs >= self._chip.multiprocessors or rows * count > MOST_ROW_SPLITS else count
        busy, least = PROGRAMS, SPLIT_KEYS
        if rows == 1:
            alone = max((layer.alone for layer in self._layers), key=attrgetter("keys"))
            busy, least = alone.programs, alone.keys
        wanted = max(busy * self._chip.multiprocessors // programs, LONG_SPLITS if longest >= LONG_KEYS else 1)
        worth = -(-longest // least) if longest > WHOLE_KEYS else 1
        return min(MOST_SPLITS, triton.next_power_of_2(min(wanted, worth)))

    def mixture_variant(self, rows: int, longest: int) -> int:
        """Only powers of four, as there is a kernel for each, and prompts take most of the time."""
        return 1 if self._in_order else 1 << (self.variant(rows, longest).bit_length() - 1) // 2 * 2

    def fixed(self, rows: int, tokens: int | None, width: int, variant: int) -> FixedMetadata | None:
        if tokens is None and not self._in_order:
            return FixedDecodes(rows, width, variant, self.device, cross=self._cross)
        if self._cross:
            return FixedSources(rows, tokens, self._builder) if tokens and not self._in_order else None
        return FixedMixtures(rows, tokens or rows, width, variant, self._builder)

    def forward(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, meta: Metadata, bias: Tensor | None = None
    ) -> Tensor:
        return self._forward(layer, q, k, v, None, meta, bias)

    def forward_rotated(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, meta: Metadata
    ) -> Tensor:
        return self._forward(layer, q, k, v, rotation, meta, None)

    def keep_source(self, layer: int, k: Tensor, v: Tensor, meta: Metadata) -> None:
        slots = meta["cross"].slots
        k, v = (_heads_together(x) for x in (k, v))
        if slots is not None:
            store(k, k, v, None, *self._caches[self._parts[layer]], slots)

    def _forward(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, rotation: Rotation | None, meta: Metadata,
        bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        own, spec = self._layers[layer], self.specs[layer]
        q, k, v = (_heads_together(x) for x in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        part = meta[spec.kind]
        if spec.kind == "encoder" or (cache := self._caches.get(self._parts[layer])) is None:
            own.prefill(q, k, v, out, part, bias)
            return out
        if part.slots is not None and k is not None:
            store(q, k, v, rotation, *cache, part.slots)
            rotation = None
        if part.decodes:
            own.decode(q, k, v, rotation, cache, out, part, bias)
        if (part.tiles or part.few) and part.gathered is None:
            self._attend_prompts(layer, q, cache, out, part, bias)
        elif part.gathered is not None and k is not None and v is not None:
            keys, values = self._taken(part.gathered, k, v, cache)
            self._attend_gathered(layer, q, keys, values, out, part, part.gathered, bias)
        return out

    def _attend_prompts(
        self, layer: int, q: Tensor, cache: tuple[Tensor, Tensor], out: Tensor, part: KeysOf, bias: Tensor | None
    ) -> None:
        """Sequences with more than one query, whose keys are in the cache."""
        self._layers[layer].prefill(q, *cache, out, part, bias)

    def _taken(
        self, gathered: GatheredKeys, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [K, Hkv, D] of prompts: this step's, or out of the cache."""
        if gathered.slots is None:
            return k[gathered.prompts.first_query :], v[gathered.prompts.first_query :]
        keys, values = (take(stored.flatten(0, 1), gathered.slots, self.dtype) for stored in cache)
        return keys, values

    def _attend_gathered(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, out: Tensor, part: KeysOf, gathered: GatheredKeys,
        bias: Tensor | None,
    ) -> None:  # fmt: skip
        """Sequences with more than one query, whose keys lie one after the other."""
        self._layers[layer].prefill(q, keys, values, out, replace(part, key_starts=gathered.starts), bias)


Constants = dict[str, int | bool]  #: of a kernel, by name


class _Layer:
    """How the kernels are launched for one layer."""

    def __init__(
        self, spec: AttentionSpec, dtype: torch.dtype, block_size: int, chip: Chip, *, in_order: bool, biased: bool
    ) -> None:
        self.spec, self.group = spec, spec.heads // spec.kv_heads
        packed = min(self.group, MOST_HEADS.value)
        padded = max(16, triton.next_power_of_2(spec.head_size))
        most_rows = tiles.FLOAT32_ROWS if dtype is torch.float32 and not chip.interprets else None
        self.copies = chip.is_hopper and not in_order
        fitting = partial(tiles.fitting, padded_head=padded, itemsize=dtype.itemsize, shared_bytes=chip.shared_bytes)
        kinds, rows = tiles.kinds(chip.lanes, copies=self.copies), tiles.rows_of_decodes(packed, chip.lanes)
        self.many, self.few, self.gathered = (
            fitting(kind, most_rows=most_rows) for kind in (kinds.prefill, kinds.few, kinds.gathered)
        )
        self.alone = kinds.alone_of(padded * dtype.itemsize)
        self.decodes, self.decodes_alone = (
            [
                (kind.most * chip.multiprocessors, fitting(kind.tiles, biased=biased)._replace(rows=rows), kind.early)
                for kind in several
            ]
            for several in (kinds.decodes, self.alone.decodes)
        )
        self.in_order, self.packed = in_order, packed
        if in_order:
            self.many = tiles.fitting_in_order(padded, dtype.itemsize, chip.shared_bytes, most_rows)
            self.gathered = self.many
        self.overlaps = DECODE.interpreted or overlaps()
        self.programs = spec.kv_heads * -(-self.group // packed)  #: of one sequence or tile
        self.constants: Constants = {
            "window": spec.window or 0,
            "H": spec.heads,
            "D": spec.head_size,
            "DP": padded,
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

    def _biases(self, device: torch.device, bias: Tensor | None) -> tuple[Tensor | float | None, ...]:
        """The last arguments before the constants: slopes, bias, scale and soft cap."""
        spec = self.spec
        if spec.alibi_slopes and self._slopes is None:
            self._slopes = torch.tensor(spec.alibi_slopes, dtype=torch.float32, device=device)
        return self._slopes, bias, float(spec.scale), float(spec.soft_cap or 0.0)

    def _constants(self, bias: Tensor | None, part: KeysOf, tile: tiles.Tile, **more: int | bool) -> Constants:
        columns = bias.shape[1] if bias is not None else 0
        return {
            **self.constants,
            **more,
            "columns": columns,
            "origin": bias_origin(self.spec, columns),
            "HAS_BIAS": bias is not None,
            "M": tile.rows,
            "N": tile.keys,
            "WIDTH_AT": part.width_at,
        }

    def prefill(self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor, part: KeysOf, bias: Tensor | None) -> None:
        """Sequences with more than one query; keys and values lie in blocks, or one after the other."""
        paged = part.key_starts is None
        few = part.few.get(self.few.rows // self.packed) if paged else None
        tile = self.gathered if not paged else self.few if few else self.many
        cut = few or part.tiles.get(tile.rows // self.packed)
        if cut is None:
            return
        copied = self.copies and not paged and is_in_tiles(keys) and is_in_tiles(values)
        beside = not paged and not copied
        constants = self._constants(
            bias, part, tile, q_token=q.stride(0), k_token=keys.stride(0) if beside else 0,
            v_token=values.stride(0) if beside else 0, PAGED=paged, CAUSAL=self.spec.kind == "causal",
        )  # fmt: skip
        arguments = (
            cut.sequence, cut.start, part.query_starts, part.lens, part.key_starts, part.tables, part.info,
            *self._biases(q.device, bias),
        )  # fmt: skip
        if self.in_order:
            self._in_order(q, keys, values, out, part, arguments, constants)
            return
        parts: tuple[Tensor | None, ...] = (None,) * 6
        if few:
            rows = few.room, self.programs, tile.rows
            shapes = (*rows, constants["DP"]), rows, rows
            waiting = (torch.empty(shape, dtype=torch.float32, device=q.device) for shape in shapes)
            parts = (*waiting, arrivals(q.device), few.part, few.parts)
        grid, constants = (cut.count, self.programs, 1), {**constants, "COPIED": copied, "DIVIDED": few is not None}
        read = (in_tiles(x, tile.keys, 1, constants["DP"]) if copied else x for x in (keys, values))
        PREFILL.launch(grid, (q, *read, out, *parts, *arguments), constants, tile.warps, tile.stages)

    def _in_order(
        self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor, part: KeysOf,
        arguments: tuple[Tensor | float | None, ...], constants: Constants,
    ) -> None:  # fmt: skip
        """As `prefill`; where there are several splits, every tile has one query."""
        splits = part.splits if self.spec.kind == "causal" else 1
        cut, tile, (heads, size) = part.tiles[self.many.rows // self.packed], self.many, q.shape[1:]
        waiting: tuple[Tensor | None, ...] = (None, None, None)
        if splits > 1:
            shapes = ((cut.count, heads, splits, size), *((cut.count, heads, splits),) * 2)
            waiting = tuple(torch.empty(shape, dtype=torch.float32, device=q.device) for shape in shapes)
        constants = {**constants, "S": splits, "SPLIT": SPLIT}
        grid = cut.count, self.programs, splits
        IN_ORDER.launch(grid, (q, keys, values, out, *waiting, *arguments), constants, tile.warps, tile.stages)
        if splits > 1:
            names = ("window", "H", "D", "DP", "S", "SPLIT", "CAUSAL", "HAS_WINDOW")
            grid = cut.count, heads, 1
            arguments = (*waiting, out, *arguments[:4])
            COMBINE_IN_ORDER.launch(grid, arguments, {name: constants[name] for name in names}, 2)

    def _tile_of_decodes(self, decodes: int, splits: int) -> tuple[tiles.Tile, bool]:
        """And whether it may read early."""
        programs = decodes * self.programs * splits
        known = self.decodes_alone if decodes == 1 < splits else self.decodes
        return next((tile, early) for most, tile, early in known if programs <= most)

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation | None, cache: tuple[Tensor, Tensor], out: Tensor,
        part: KeysOf, bias: Tensor | None,
    ) -> None:  # fmt: skip
        """Sequences with one query; `rotation` if query and key are still to be turned."""
        has_new, splits, (heads, size) = self.spec.kind == "causal", part.splits, q.shape[1:]
        tile, early = self._tile_of_decodes(part.decodes, splits)
        partial = sums = None
        if splits > 1:
            partial = torch.empty((part.decodes, heads, splits, size), dtype=torch.float32, device=q.device)
            sums = torch.empty((part.decodes, heads, splits), dtype=torch.float32, device=q.device)
        constants = self._constants(
            bias, part, tile, q_token=q.stride(0), k_token=k.stride(0) if has_new else 0,
            v_token=v.stride(0) if has_new else 0, S=splits, HAS_NEW=has_new,
            SETTLED=early and part.settled and self.overlaps, HALF=rotation[0].shape[-1] if rotation else 0,
        )  # fmt: skip
        arguments = (
            q, k if has_new else None, v if has_new else None, *(rotation or (None, None)), *cache, out, partial, sums,
            part.members, part.query_starts, part.lens, part.tables, part.info, *self._biases(q.device, bias),
        )  # fmt: skip
        DECODE.launch((part.decodes, self.programs, splits), arguments, constants, tile.warps, tile.stages)
        if splits > 1:
            names = ("window", "H", "D", "DP", "N", "S", "HAS_WINDOW")
            arguments = (partial, sums, out, part.members, part.query_starts, part.lens)
            COMBINE.launch((part.decodes, heads, 1), arguments, {name: constants[name] for name in names}, 2)


def _heads_together(x: Tensor | None) -> Any:
    """x [T, H, D] with heads side by side; rows may be strided."""
    if x is None or (x.stride(2) == 1 and (x.stride(1) == x.shape[2] or x.shape[1] == 1)):
        return x
    return x.contiguous()
