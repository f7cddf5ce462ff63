"""A step as the attention kernels read it: which sequences have one query and which more, and where keys lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tgi_core.attention.base import Int32Array, SourceInput, StepInput
from tgi_core.triton.cut import Cut, cut
from tgi_core.triton.packed import Packed

CAUSAL_WIDTH, CROSS_WIDTH = 0, 1  #: where `info` holds the width of block tables
INFO = 16


@dataclass
class Tiles:
    """Queries of sequences with more than one, cut into tiles; see `Cut`."""

    sequence: Tensor
    start: Tensor

    @property
    def count(self) -> int:
        """Of programs for each of their heads."""
        return len(self.sequence)


@dataclass
class Parts(Tiles):
    """Tiles whose keys may be divided."""

    part: Tensor
    parts: Tensor
    room: int = field(kw_only=True)  #: tiles, the first ones, that have memory to leave what they find in a part


@dataclass
class Prompts:
    """The sequences from the first one with more than one query on, as kernels for ragged prompts take them."""

    first: int  #: sequence
    first_query: int
    starts: Tensor  #: [n + 1] of their queries, from 0 on
    lens: tuple[int, ...]  #: [n] queries of each
    width: int  #: of the block tables

    @cached_property
    def longest(self) -> int:
        """Queries of a sequence."""
        return max(self.lens)


@dataclass
class GatheredKeys:
    """All keys of the prompts, which are the last n of B sequences, one after the other."""

    prompts: Prompts
    starts: Tensor  #: [B + 1]; those before the n have none
    slots: Tensor | None  #: [K] where each is in the cache; None where all are new in this step
    lens: tuple[int, ...]  #: [n]

    @cached_property
    def longest(self) -> int:
        """Keys of a sequence."""
        return max(self.lens)


@dataclass
class KeysOf:
    """What layers of one kind read."""

    info: Tensor
    width_at: int
    lens: Tensor  #: [B] keys of each sequence
    tables: Tensor
    query_starts: Tensor  #: [B + 1]
    members: Tensor  #: sequences with one query
    decodes: int  #: how many these are
    splits: int = 1
    settled: bool = False  #: no key is written in this step but the one that its query brings
    key_starts: Tensor | None = None  #: [B + 1] of keys beside the queries; None where they lie in blocks
    slots: Tensor | None = None  #: of new keys, where they are to be stored
    tiles: dict[int, Tiles] = field(default_factory=dict)  #: by tokens of a tile
    few: dict[int, Parts] = field(default_factory=dict)  #: in place of `tiles` of keys in blocks, if there are any
    prompts: Prompts | None = None
    gathered: GatheredKeys | None = None  #: where prompts are long enough for it


Metadata = dict[str, KeysOf]  #: by kind of layer

#: numbers of arrays of `KeysOf`, of several the first; and `decodes`
_Draft = dict[str, int | dict[int, int]]

MOST_GATHERED = 1 << 14  #: keys in all, which take memory beside the cache


class StepBuilder:
    """Makes `Metadata` of a `StepInput`.

    Args:
        tile_tokens: the tokens of a tile that layers ask for.
        few_tokens: the same, of tiles whose keys are divided where there are fewer than `most_parts` of them.
        gathers_from: queries of the longest prompt, from which on prompts get `GatheredKeys`; None for never.
        keeps_dtype: new keys are what the cache gives back.
        in_order: single queries are in tiles too.
    """

    def __init__(
        self,
        block_size: int,
        device: torch.device,
        tile_tokens: Iterable[int],
        *,
        few_tokens: Iterable[int] = (),
        most_parts: int = 0,
        gathers_from: int | None = None,
        keeps_dtype: bool = True,
        in_order: bool = False,
    ) -> None:
        self.block_size, self.device, self.tile_tokens = block_size, device, tuple(tile_tokens)
        self.few_tokens, self.most_parts = tuple(few_tokens), most_parts
        self.gathers_from, self.keeps_dtype, self.in_order = gathers_from, keeps_dtype, in_order

    def build(self, step: StepInput, splits: int) -> Metadata:
        """Everything in one copy to the device."""
        packed, source = Packed(), step.source
        info = np.zeros(INFO, dtype=np.int32)
        info[CAUSAL_WIDTH] = step.block_tables.shape[1]
        info[CROSS_WIDTH] = source.block_tables.shape[1] if source else 0
        packed.add(info)
        queries, lens, tables = step.query_starts, step.context_lens, step.block_tables
        drafts = {"causal": self._add(packed, queries, queries, lens, tables, is_causal=True)}
        if source is not None:
            drafts["cross"] = self._add(packed, queries, source.starts, source.lens, source.block_tables)
            if source.starts[-1]:
                drafts["encoder"] = self._add_encoder(packed, source)
        lengths = np.diff(queries)
        first = int(np.argmax(lengths > 1))
        starts = packed.add(queries[first:] - queries[first])
        has_prompts = bool(lengths[first] > 1)
        keys = self._add_keys(packed, first, lengths, lens, tables) if has_prompts else None
        arrays = packed.copy_to(self.device)
        metadata = {
            kind: self._keys(arrays, draft, CROSS_WIDTH if kind == "cross" else CAUSAL_WIDTH, splits)
            for kind, draft in drafts.items()
        }
        if has_prompts:
            prompts = Prompts(
                first, int(queries[first]), arrays[starts], tuple(lengths[first:].tolist()), tables.shape[1]
            )
            metadata["causal"].prompts = prompts
            if keys is not None:
                key_starts, slots = keys
                places = arrays[slots] if slots is not None else None
                gathered = GatheredKeys(prompts, arrays[key_starts], places, tuple(lens[first:].tolist()))
                metadata["causal"].gathered = gathered
        return metadata

    def _add_keys(
        self, packed: Packed, first: int, lengths: Int32Array, lens: Int32Array, tables: Int32Array
    ) -> tuple[int, int | None] | None:
        """The numbers of the arrays of `GatheredKeys`, if prompts get them."""
        if self.gathers_from is None or lengths.max() < self.gathers_from:
            return None
        keys = np.where(np.arange(len(lens)) < first, 0, lens)
        starts = np.concatenate([[0], np.cumsum(keys)]).astype(np.int32)
        number = packed.add(starts)
        if self.keeps_dtype and np.array_equal(lengths[first:], lens[first:]):
            return number, None
        if starts[-1] > MOST_GATHERED:
            return None
        return number, packed.add(self.slots_of(starts, lens, tables))

    def _add(
        self, packed: Packed, queries: Int32Array, new: Int32Array, lens: Int32Array, tables: Int32Array,
        *, is_causal: bool = False,
    ) -> _Draft:  # fmt: skip
        """`is_causal`: keys are the sequences' own, and are stored here if there is not just a single query in each,
        which stores its own; otherwise those of sources."""
        lengths = np.diff(queries)
        singles, in_tiles = self.divided(lengths)
        draft: _Draft = {
            "lens": packed.add(lens),
            "tables": packed.add(tables),
            "query_starts": packed.add(queries),
            "members": packed.add(singles),
            "decodes": len(singles),
        }
        if new[-1] and not (is_causal and len(singles) == len(lengths)):
            draft["slots"] = packed.add(self.slots_of(new, lens, tables))
        draft["tiles"] = self._add_tiles(packed, in_tiles, lens, is_causal=is_causal)
        draft["few"] = self._add_parts(packed, in_tiles, lens, is_causal=is_causal)
        return draft

    def divided(self, lengths: Int32Array) -> tuple[Int32Array, Int32Array]:
        """Queries [B] of sequences -> those with a single one, which are split; queries [B] that are cut into tiles."""
        if self.in_order:
            return lengths[:0], lengths
        return np.flatnonzero(lengths == 1).astype(np.int32), np.where(lengths > 1, lengths, 0)

    def _add_encoder(self, packed: Packed, source: SourceInput) -> _Draft:
        lens = np.diff(source.starts)
        starts, empty = packed.add(source.starts), np.zeros(0, dtype=np.int32)
        return {
            "lens": packed.add(lens),
            "tables": packed.add(empty),
            "query_starts": starts,
            "key_starts": starts,
            "members": packed.add(empty),
            "decodes": 0,
            "tiles": self._add_tiles(packed, lens, lens, is_causal=False),
        }

    def _add_tiles(self, packed: Packed, lengths: Int32Array, lens: Int32Array, *, is_causal: bool) -> dict[int, int]:
        """tokens of a tile -> number of the first of the arrays of `Tiles`"""
        found = {}
        for tokens in self.tile_tokens if lengths.any() else ():
            tiles = cut(lengths, lens, tokens, 0, is_causal=is_causal)
            found[tokens] = packed.add(tiles.sequence)
            packed.add(tiles.start)
        return found

    def _add_parts(self, packed: Packed, lengths: Int32Array, lens: Int32Array, *, is_causal: bool) -> dict[int, int]:
        """tokens of a tile -> number of the first of the arrays of `Parts`, if any keys are divided"""
        cuts = {tokens: cut(lengths, lens, tokens, self.most_parts, is_causal=is_causal) for tokens in self.few_tokens}
        if not any(found.part.any() for found in cuts.values()):
            return {}
        numbers = {}
        for tokens, found in cuts.items():
            numbers[tokens], *_ = map(packed.add, found)
        return numbers

    def slots_of(self, new: Int32Array, lens: Int32Array, tables: Int32Array) -> Int32Array:
        """Where new keys go, which are the last of their sequences; `new` [B + 1] says where those of each begin."""
        sequence = np.repeat(np.arange(len(lens)), np.diff(new))
        position = lens[sequence] - new[1:][sequence] + np.arange(len(sequence))
        slots = tables[sequence, position // self.block_size] * self.block_size + position % self.block_size
        return slots.astype(np.int32)

    def _keys(self, arrays: list[Tensor], draft: _Draft, width_at: int, splits: int) -> KeysOf:
        at = {name: value for name, value in draft.items() if isinstance(value, int)}
        return KeysOf(
            info=arrays[0],
            width_at=width_at,
            lens=arrays[at["lens"]],
            tables=arrays[at["tables"]],
            query_starts=arrays[at["query_starts"]],
            members=arrays[at["members"]],
            decodes=at["decodes"],
            splits=splits,
            key_starts=arrays[at["key_starts"]] if "key_starts" in at else None,
            slots=arrays[at["slots"]] if "slots" in at else None,
            tiles={tokens: Tiles(*arrays[number : number + 2]) for tokens, number in _of(draft, "tiles")},
            few={
                tokens: Parts(*arrays[number : number + len(Cut._fields)], room=len(arrays[number]))
                for tokens, number in _of(draft, "few")
            },
        )


def _of(draft: _Draft, name: str) -> Iterable[tuple[int, int]]:
    """tokens of a tile, number of the first of its arrays"""
    found = draft.get(name)
    return found.items() if isinstance(found, dict) else ()
