"""Steps of fixed shapes: a prompt alone, or one token of every slot."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend
from tgi_core.device.backend import DeviceBackend, Download
from tgi_core.runner.eager import EagerRunner, Launched
from tgi_core.runner.slots import SlotTables
from tgi_core.sampling.sampler import Sampler
from tgi_core.sampling_params import SamplingParams
from tgi_core.step import Admission, Row, RowResult
from tgi_neuron.model import NeuronDecoder

GREEDY = (1.0, 1.0, 1.0)  #: top-k, top-p, temperature


class NeuronRunner(EagerRunner):
    """A graph writes keys and values for every slot, so rows that a step leaves out repeat their last token.

    B slots, V words.
    """

    def __init__(
        self,
        model: NeuronDecoder,
        attention: AttentionBackend,
        sampler: Sampler,
        slots: SlotTables,
        backend: DeviceBackend,
    ) -> None:
        super().__init__(model, attention, sampler, slots, backend)
        self._graphs, self._shapes = model.graphs, model.shapes
        size = model.shapes.batch_size
        self._slots = torch.arange(size, dtype=torch.int32)
        self._tokens = torch.zeros(size, 1, dtype=torch.int32)  # the last that each slot has read,
        self._positions = torch.zeros(size, 1, dtype=torch.int32)  # and where
        self._sampling = torch.tensor([GREEDY] * size)

    def _admit(self, admission: Admission) -> str:
        self._sampling[admission.slot] = torch.tensor(_sampling(admission.params, self._shapes.max_top_k))
        return super()._admit(admission)

    def _launch(self, rows: tuple[Row, ...]) -> Launched:
        prompts = [row for row in rows if row.length > 1]
        singles = [row for row in rows if row.length == 1]
        given = torch.cat([self._read(row) for row in prompts] + ([self._decode(singles)] if singles else []))
        order, places = [*prompts, *singles], {row.sequence_id: index for index, row in enumerate(rows)}
        sampled = [places[row.sequence_id] for row in order]
        if not self._shapes.samples_on_device:
            return self._launched(rows, sampled, self._sample(order, given[:, -1].float()), {})
        self.slots.last_tokens[self.slots.slots(order)] = given.long()
        results = [RowResult(row.sequence_id) for row in rows]
        for place, token in zip(sampled, given.tolist(), strict=True):
            results[place].token_id, results[place].logprob = token, math.nan  # which nobody knows
        return Launched(results, [], None, [], Download(()))

    def _read(self, row: Row) -> Tensor:
        """What comes after a whole prompt of several tokens: logits [1, 1, V], or a token [1]."""
        tokens = self.slots.input_ids((row,)).to(torch.int32)
        self._tokens[row.slot], self._positions[row.slot] = tokens[-1], row.length - 1
        slot = slice(row.slot, row.slot + 1)
        positions = torch.arange(row.length, dtype=torch.int32)
        return self._graphs(tokens[None], positions[None], self._slots[slot], self._sampling[slot])

    def _decode(self, rows: list[Row]) -> Tensor:
        """What comes after one more token of these rows: logits [b, 1, V], or tokens [b].

        It may be the first, as optimum-neuron's graph for prompts takes no single tokens.
        """
        slots = [row.slot for row in rows]
        self._tokens[slots, 0] = self.slots.input_ids(tuple(rows)).to(torch.int32)
        self._positions[slots, 0] = torch.tensor([row.start for row in rows], dtype=torch.int32)
        return self._graphs(self._tokens, self._positions, self._slots, self._sampling)[slots]


def _sampling(params: SamplingParams, max_top_k: int) -> tuple[float, float, float]:
    """Top-k, top-p and temperature as graphs take them; the most likely tokens beyond `max_top_k` are never taken."""
    if not params.do_sample:
        return GREEDY
    return float(params.top_k or max_top_k), params.top_p, params.temperature
