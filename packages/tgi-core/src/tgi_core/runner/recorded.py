"""Steps in memory that stays where it is, so that a device can record what it does for one and repeat it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tgi_core.attention.base import EncoderInput, FixedMetadata, ForwardContext, StepInput
from tgi_core.device.backend import DeviceBackend
from tgi_core.kernels.ops import Kernels
from tgi_core.models.base import EncoderDecoderLM, LanguageModel
from tgi_core.runner.slots import SlotTables, in_a_row, positions
from tgi_core.sampling.sampler import Choice, Sampler
from tgi_core.step import Row


class Recording(ABC):
    """Recorded work of a fixed size; what a step has less is padding, for which no key or value is read or written.

    Args:
        rows: sequences.
    """

    replay: Callable[[], None]

    def __init__(self, rows: int, slots: SlotTables, attention: FixedMetadata, backend: DeviceBackend) -> None:
        self.rows, self.slots, self.attention, self.backend = rows, slots, attention, backend
        attention.clear()

    @abstractmethod
    def fill(self, rows: tuple[Row, ...], step: StepInput, wanted: Sequence[int]) -> None:
        """Take over a step, `wanted` rows of which get tokens."""

    @abstractmethod
    def run(self, model: LanguageModel, sampler: Sampler) -> None:
        """What is recorded."""

    def _zeros(self, *size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64, device=self.backend.torch_device)


class RecordedStep(Recording):
    """One step, at whose end `rows` sequences get a token.

    Args:
        chooses: it ends with the most likely tokens, which stay on the device; otherwise with logits.
    """

    logits: Tensor  #: [rows, V], unless it chooses; overwritten by the next replay of any recording
    choice: Choice | None = None  #: if it chooses

    def __init__(self, *parts: Any, chooses: bool) -> None:
        super().__init__(*parts)
        self.chooses = chooses

    @abstractmethod
    def hidden(self, model: LanguageModel, kernels: Kernels) -> Tensor:
        """Run the model: [rows, N]"""

    @abstractmethod
    def chosen_for(self) -> Tensor:
        """The slots that get tokens: [rows]"""

    def run(self, model: LanguageModel, sampler: Sampler) -> None:
        """What is recorded."""
        logits = model.logits(self.hidden(model, sampler.kernels))
        if not self.chooses:
            self.logits = logits
            return
        self.choice = sampler.greedy(logits)
        self.slots.last_tokens.index_copy_(0, self.chosen_for(), self.choice.ids)


class RecordedDecode(RecordedStep):
    """Every row has one token, the last one that its slot was given."""

    def __init__(self, rows: int, *parts: Any, chooses: bool) -> None:
        super().__init__(rows, *parts, chooses=chooses)
        self._memory = self._zeros(2, rows + rows % 2)  # both begin at a multiple of 16 bytes
        self._inputs = self._memory[:, :rows]  # slots and positions
        self._inputs[0] = self.slots.padding_slot

    def fill(self, rows: tuple[Row, ...], step: StepInput, wanted: Sequence[int]) -> None:
        inputs = np.zeros(self._memory.shape, dtype=np.int64)
        inputs[0, :] = self.slots.padding_slot
        inputs[0, : len(rows)] = [row.slot for row in rows]
        inputs[1, : len(rows)] = step.context_lens - 1
        self.attention.fill(step)
        self.backend.upload(inputs, self._memory)

    def hidden(self, model: LanguageModel, kernels: Kernels) -> Tensor:
        slots, positions = self._inputs
        tokens = kernels.look_up(self.slots.last_tokens, slots)
        return model(tokens, ForwardContext(positions, self.attention.metadata))

    def chosen_for(self) -> Tensor:
        return self._inputs[0]


class RecordedMixture(RecordedStep):
    """Any mixture of prompts, chunks and decodes.

    Args:
        tokens: of all rows together.
    """

    def __init__(self, rows: int, *parts: Any, tokens: int, chooses: bool) -> None:
        super().__init__(rows, *parts, chooses=chooses)
        self.tokens = tokens
        self._ids = self._zeros(tokens)
        self._inputs = self._zeros(tokens + 2 * rows)  # positions, then the last tokens of rows, then their slots
        self._positions, self._ends = self._inputs[:tokens], self._inputs[tokens : tokens + rows]
        self._slots = self._inputs[tokens + rows :]
        self._slots.fill_(self.slots.padding_slot)

    def fill(self, rows: tuple[Row, ...], step: StepInput, wanted: Sequence[int]) -> None:
        inputs = np.zeros(len(self._inputs), dtype=np.int64)
        where, ends, slots = np.split(inputs, (self.tokens, self.tokens + self.rows))
        where[: step.num_tokens] = positions(step)
        ends[: len(wanted)] = step.query_starts[1:][list(wanted)] - 1
        slots[:] = self.slots.padding_slot
        slots[: len(wanted)] = [rows[index].slot for index in wanted]
        self.attention.fill(step)
        self.backend.upload(inputs, self._inputs)
        self._ids[: step.num_tokens] = self.slots.input_ids(rows)

    def hidden(self, model: LanguageModel, kernels: Kernels) -> Tensor:
        hidden: Tensor = model(self._ids, ForwardContext(self._positions, self.attention.metadata))
        return kernels.look_up(hidden, self._ends)

    def chosen_for(self) -> Tensor:
        return self._slots


class RecordedSources(Recording):
    """What an encoder makes of the sources that begin, before the step of their decoder.

    Args:
        tokens: of all sources together.
    """

    def __init__(self, *parts: Any, tokens: int) -> None:
        super().__init__(*parts)
        self._inputs = self._zeros(2, tokens)  # ids and positions

    def fill(self, rows: tuple[Row, ...], step: StepInput, wanted: Sequence[int]) -> None:
        inputs = np.zeros(self._inputs.shape, dtype=np.int64)
        ids, positions = in_a_row(self.slots.sources(rows))
        inputs[0, : len(ids)], inputs[1, : len(ids)] = ids, positions
        self.attention.fill(step)
        self.backend.upload(inputs, self._inputs)

    def run(self, model: LanguageModel, sampler: Sampler) -> None:
        if not isinstance(model, EncoderDecoderLM):
            raise TypeError(f"{type(model).__name__} has no encoder")
        ids, positions = self._inputs
        model.encode(ForwardContext(positions[:0], self.attention.metadata, EncoderInput(ids, positions, ())))
