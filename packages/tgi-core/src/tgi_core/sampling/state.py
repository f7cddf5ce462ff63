"""What the sampler knows of the sequences in its slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tgi_core.device.backend import Upload
from tgi_core.distributed.group import ALONE, Group
from tgi_core.kernels.ops import Kernels, TokenTables
from tgi_core.sampling.rules import TokenRules
from tgi_core.sampling_params import SamplingParams
from tgi_core.step import Admission

COUNT = torch.int32  #: what counts tokens


@dataclass(slots=True, eq=False)
class SlotState:
    """One sequence's parameters and how far it is."""

    slot: int
    params: SamplingParams
    seed: int
    generated: int  #: output tokens sampled so far
    prompt: tuple[int, ...]

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.params.do_sample

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)


class TokenCounts:
    """How often each slot's prompt and output hold each token: [slots, V] on the device, made when first needed."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device, upload: Upload) -> None:
        self.slots, self.vocab_size, self.device, self.upload = slots, vocab_size, device, upload

    @staticmethod
    def sequence_bytes(vocab_size: int) -> int:
        """What a slot takes of memory."""
        return len(TokenTables._fields) * vocab_size * COUNT.itemsize

    @cached_property
    def tables(self) -> TokenTables:
        """The counts."""
        shape = (self.slots, self.vocab_size)
        return TokenTables(*(torch.zeros(shape, dtype=COUNT, device=self.device) for _ in TokenTables._fields))

    def admit(self, admission: Admission) -> None:
        """Start counting for a sequence that was given this slot."""
        if not needs_counts(admission.params):
            return
        prompt, output = self.tables
        self._count(prompt[admission.slot], admission.tokens[: admission.prompt_len])
        self._count(output[admission.slot], admission.tokens[admission.prompt_len :])

    def counted(self, states: Sequence[SlotState]) -> tuple[Tensor, Tensor] | None:
        """The rows of a batch whose tokens are counted, and their slots."""
        found = [(index, state.slot) for index, state in enumerate(states) if needs_counts(state.params)]
        if not found:
            return None
        rows, slots = self.upload(np.array(found, dtype=np.int64)).unbind(1)
        return rows, slots

    def add(self, counted: tuple[Tensor, Tensor], ids: Tensor) -> None:
        """Count the tokens ids [B] just sampled for a batch."""
        rows, slots = counted
        self.tables.output[slots, ids[rows]] += 1

    def _count(self, row: Tensor, tokens: Sequence[int]) -> None:
        row.zero_()
        if tokens:
            ids = self.upload(np.array(tokens, dtype=np.int64))
            row.scatter_add_(0, ids, torch.ones_like(ids, dtype=row.dtype))


def needs_counts(params: SamplingParams) -> bool:
    """Whether a request's penalties look at the tokens so far."""
    return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


@dataclass(frozen=True)
class SamplingContext:
    """What processors may look at besides the logits."""

    vocab_size: int
    device: torch.device
    upload: Upload  #: what is made of Python's numbers goes to the device through it, which is not waited for then
    counts: TokenCounts
    last_tokens: Tensor  #: [slots] int64, the last token of each slot
    watermark_gamma: float
    watermark_delta: float
    rules: TokenRules
    kernels: Kernels
    group: Group = ALONE  #: the ranks that sample the same sequences
    deterministic: bool = False  #: what a row gets is, bit by bit, the same in every batch
