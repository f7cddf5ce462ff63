"""What the sampler knows of the sequences in its slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tgi_core.kernels.ops import Kernels, TokenTables
from tgi_core.sampling.rules import TokenRules
from tgi_core.sampling_params import SamplingParams
from tgi_core.step import Admission


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

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self.slots, self.vocab_size, self.device = slots, vocab_size, device

    @cached_property
    def tables(self) -> TokenTables:
        """The counts."""
        shape = (self.slots, self.vocab_size)
        return TokenTables(*(torch.zeros(shape, dtype=torch.int32, device=self.device) for _ in range(2)))

    def admit(self, admission: Admission) -> None:
        """Start counting for a sequence that was given this slot."""
        if not needs_counts(admission.params):
            return
        prompt, output = self.tables
        prompt[admission.slot] = self._count(admission.tokens[: admission.prompt_len])
        output[admission.slot] = self._count(admission.tokens[admission.prompt_len :])

    def add(self, states: Sequence[SlotState], ids: Tensor) -> None:
        """Count the tokens ids [B] just sampled for these slots."""
        counted = [(index, state.slot) for index, state in enumerate(states) if needs_counts(state.params)]
        if counted:
            rows, slots = torch.tensor(counted, device=self.device).unbind(1)
            self.tables.output[slots, ids[rows]] += 1

    def _count(self, tokens: Sequence[int]) -> Tensor:
        return torch.bincount(torch.tensor(tokens, dtype=torch.int64, device=self.device), minlength=self.vocab_size)


def needs_counts(params: SamplingParams) -> bool:
    """Whether a request's penalties look at the tokens so far."""
    return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


@dataclass(frozen=True)
class SamplingContext:
    """What processors may look at besides the logits."""

    vocab_size: int
    device: torch.device
    counts: TokenCounts
    last_tokens: Tensor  #: [slots] int64, the last token of each slot
    watermark_gamma: float
    watermark_delta: float
    rules: TokenRules
    kernels: Kernels
