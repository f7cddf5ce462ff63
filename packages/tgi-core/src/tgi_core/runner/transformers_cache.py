"""Runs models that keep a cache of transformers' own: batches that sequences join and leave between steps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend
from tgi_core.device.backend import DeviceBackend
from tgi_core.models.cached_decoder import CachedBatch
from tgi_core.models.fallback_cached import CachedTransformersLM
from tgi_core.runner.eager import EagerRunner, Launched
from tgi_core.runner.slots import SlotTables
from tgi_core.sampling.sampler import Sampler
from tgi_core.step import Admission, Row


@dataclass
class _Group:
    """Sequences that decode together."""

    ids: list[int]  #: of the sequences, one a row
    batch: CachedBatch


class TransformersCacheRunner(EagerRunner):
    """Whole prompts are prefilled with others of the same length, then decode with whomever they may.

    A plan has either prompts or decodes, and those all of them: a sequence that is left out has ended.  One whose
    cache is lost because a step failed is computed again from its tokens.
    """

    def __init__(
        self,
        model: CachedTransformersLM,
        attention: AttentionBackend,
        sampler: Sampler,
        slots: SlotTables,
        backend: DeviceBackend,
    ) -> None:
        super().__init__(model, attention, sampler, slots, backend)
        self._cached = model
        self._groups: list[_Group] = []
        self._tokens: dict[int, list[int]] = {}  # slot -> all tokens of its sequence
        self._sources: dict[int, tuple[int, ...]] = {}  # slot -> what an encoder reads of its sequence
        self._owners: dict[int, int] = {}  # slot -> the sequence that had it last

    def _admit(self, admission: Admission) -> str:
        self._leave({admission.sequence_id})
        self._owners[admission.slot] = admission.sequence_id
        self._tokens[admission.slot], self._sources[admission.slot] = list(admission.tokens), admission.source
        owners = set(self._owners.values())
        self._groups = [group for group in self._groups if not owners.isdisjoint(group.ids)]
        return super()._admit(admission)

    def _launch(self, rows: tuple[Row, ...]) -> Launched:
        try:
            return self._computed(rows)
        except Exception:
            ids = {row.sequence_id for row in rows}
            self._groups = [group for group in self._groups if ids.isdisjoint(group.ids)]
            raise

    def _computed(self, rows: tuple[Row, ...]) -> Launched:
        by_id = {row.sequence_id: row for row in rows}
        held = by_id.keys() & {member for group in self._groups for member in group.ids}
        fresh = [row for row in rows if row.sequence_id not in held]
        order: list[Row] = []
        logits: list[Tensor] = []
        scores: dict[int, list[Tensor]] = {}  # sequence -> log-probabilities of its prompt
        if held:
            self._settle(held)
            for group in self._groups:
                members = [by_id[member] for member in group.ids]
                order += members
                logits.append(self._decode(members, group.batch))
        for members in self._alike(fresh):
            order += members
            logits.append(self._prefill(members, scores))
        choice = self._sample(order, torch.cat(logits).to(self.slots.last_tokens.device))
        places = {row.sequence_id: index for index, row in enumerate(rows)}
        launched = self._launched(
            rows,
            [places[row.sequence_id] for row in order],
            choice,
            {places[sequence_id]: found for sequence_id, found in scores.items()},
        )
        for row, result in zip(rows, launched.collect(), strict=True):
            if result.token_id is not None:
                self._tokens[row.slot].append(result.token_id)
        return launched

    # ---- prefill --------------------------------------------------------------------------------------------------

    def _alike(self, rows: list[Row]) -> list[list[Row]]:
        """Rows whose tokens may be computed together, without any padding."""

        def key(row: Row) -> tuple[int, int, int]:
            alone = self._cached.batching == "single" or self.sampler.state(row.slot).params.prompt_logprobs
            return row.start + row.length, len(self._sources[row.slot]), row.slot if alone else -1

        return [list(group) for _, group in groupby(sorted(rows, key=key), key)]

    def _prefill(self, rows: list[Row], scores: dict[int, list[Tensor]]) -> Tensor:
        """The logits [B, V] after all tokens of these sequences, which form a group from now on."""
        decoder = self._cached.decoder
        tokens = torch.tensor([self._tokens[row.slot][: row.start + row.length] for row in rows])
        every = any(self.sampler.state(row.slot).params.prompt_logprobs for row in rows)
        sources = torch.tensor([self._sources[row.slot] for row in rows]) if decoder.has_source else None
        logits, batch = decoder.prefill(tokens, sources, all_logits=every)
        if every:
            for row, of_row in zip(rows, logits, strict=True):
                for found in self._prompt_logprobs((row,), [row.length], of_row).values():
                    scores[row.sequence_id] = found
        self._groups.append(_Group([row.sequence_id for row in rows], batch))
        return logits[:, -1]

    # ---- decode ---------------------------------------------------------------------------------------------------

    def _decode(self, rows: list[Row], batch: CachedBatch) -> Tensor:
        tokens = self.slots.last_tokens[[row.slot for row in rows]]
        return self._cached.decoder.decode(tokens, batch)

    def _settle(self, staying: Collection[int]) -> None:
        """Drop the sequences that have ended, then join what may decode together."""
        self._leave({member for group in self._groups for member in group.ids}.difference(staying))
        if len(self._groups) < 2:
            return
        waiting = sorted(self._groups, key=lambda group: group.batch.length)
        self._groups = []
        while waiting:
            joining = [waiting.pop(0)]
            while waiting and self._cached.may_decode_together([group.batch for group in (*joining, waiting[0])]):
                joining.append(waiting.pop(0))
            self._groups.append(self._joined(joining))

    def _joined(self, groups: list[_Group]) -> _Group:
        if len(groups) == 1:
            return groups[0]
        batch = self._cached.decoder.join([group.batch for group in groups])
        return _Group([member for group in groups for member in group.ids], batch)

    def _leave(self, leaving: Collection[int]) -> None:
        """Drop sequences from their groups."""
        kept = []
        for group in self._groups:
            rows = [row for row, member in enumerate(group.ids) if member not in leaving]
            if len(rows) < len(group.ids) and rows:
                batch = self._cached.decoder.select(group.batch, rows)
                group = _Group([group.ids[row] for row in rows], batch)  # noqa: PLW2901
            if rows:
                kept.append(group)
        self._groups = kept
