"""One step of the engine, in plain Python: what the scheduler asks of a runner and what comes back.

A slot is a sequence's row in the runner's per-sequence state; a block is a piece of KV cache.  Padding, buckets and
masks are the runner's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from tgi_core.request import TokenLogprob
from tgi_core.sampling_params import SamplingParams

StepKind = Literal["prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence takes a slot: what the runner must know of it before its first row."""

    sequence_id: int
    slot: int
    params: SamplingParams
    seed: int
    tokens: tuple[int, ...]  #: prompt, and after a preemption the output so far
    prompt_len: int
    source: tuple[int, ...] = ()  #: what an encoder reads in the step of the first row; then `tokens` are the decoder's
    source_blocks: tuple[int, ...] = ()  #: for cross-attention's keys and values of the source


class Row(msgspec.Struct, frozen=True, gc=False):
    """The part of one sequence that a step computes: `length` tokens from position `start`."""

    sequence_id: int
    slot: int
    start: int
    length: int
    tokens: tuple[int, ...] | None  #: None: the one token that this slot sampled last, still on the device
    new_blocks: tuple[int, ...]  #: appended to the slot's block table before this step
    wants_token: bool  #: sample after the last of these tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """All rows of one step.  `admissions` come first; their slots may be those of sequences that have ended."""

    number: int
    kind: StepKind
    rows: tuple[Row, ...]
    admissions: tuple[Admission, ...] = ()


class RowResult(msgspec.Struct, gc=False):
    """What one row brought; host values, never views of device memory."""

    sequence_id: int
    token_id: int | None = None  #: None where the row wanted none
    logprob: float = 0.0  #: NaN where the device gives none
    top_logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[float] = []  #: of the prompt tokens that follow this row's, from start + 1 on
    error: str = ""  #: this row failed; the others did not


@dataclass(slots=True)
class StepResult:
    """Results in the order of the plan's rows."""

    rows: list[RowResult]
    forward_s: float = 0.0
