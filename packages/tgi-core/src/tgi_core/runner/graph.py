"""The runner of devices that repeat a recorded step faster than Python can tell them what to do."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from tgi_core.attention.base import ForwardContext, StepInput
from tgi_core.device.backend import UnrecordableStep
from tgi_core.errors import RanksApart
from tgi_core.kernels import compiling
from tgi_core.runner.eager import EagerRunner, Launched
from tgi_core.runner.recorded import RecordedDecode, RecordedMixture, RecordedStep
from tgi_core.runner.slots import positions
from tgi_core.runner.unrecorded import unrecorded_steps
from tgi_core.sampling.sampler import Choice
from tgi_core.stats import EngineInfo
from tgi_core.step import Row

log = logging.getLogger(__name__)

SPARE_BYTES = 1 << 30  #: of the device's memory, that recordings ahead leave
SHORT = 64  #: tokens of the shortest sequences that steps are recorded for ahead
TRIES_S = 0.03  #: at most, in which sizes are tried whose kernels are not compiled yet
POLL_S = 0.005  #: between looks at kernels that all others wait for


class _Size(NamedTuple):
    """Which recording serves a step."""

    rows: int
    tokens: int | None  #: of a mixture; decodes have one in each row
    variant: int  #: see `AttentionBackend.variant`
    chooses: bool


class GraphRunner(EagerRunner):
    """Replays steps; larger ones and rarer kinds are called layer by layer.

    So are the first steps of a size, which is recorded when there is time, or when it has been met so often.  Where the
    device records ahead, decodes are recorded when they are met, and sizes that nobody has met come last.
    """

    decodes_met, mixtures_met = 2, 4  #: recording holds up a step, and decodes come again and again

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._met: dict[_Size, int] = {}  # how often; not yet recorded, in an order that is the same on all ranks
        self._recorded: dict[_Size, RecordedStep | None] = {}
        self._compiling: dict[_Size, Callable[[], bool]] = {}  # whether kernels that these wait for are there
        self._foreseen: Iterator[_Size] | None = None  # not yet recorded ahead
        self._unrecorded: Iterator[StepInput] | None = None  # whose kernels are not yet compiled ahead

    def _launch(self, rows: tuple[Row, ...]) -> Launched:
        step = self.slots.step_input(rows)
        wanted = [index for index, row in enumerate(rows) if row.wants_token]
        recorded = self._recorded_for(rows, step, wanted)
        if recorded is None:
            return self._launch_eagerly(rows, step)
        recorded.fill(rows, step, wanted)
        recorded.replay()
        return self._launched(rows, wanted, self._choice([rows[index] for index in wanted], recorded), {})

    def close(self) -> None:
        self._met.clear()
        self._recorded.clear()
        self._compiling.clear()
        self._foreseen = self._unrecorded = iter(())

    def _choice(self, rows: Sequence[Row], recorded: RecordedStep) -> Choice | None:
        if not rows:
            return None
        if recorded.choice is None:
            return self._sample(rows, recorded.logits[: len(rows)])
        choice = Choice(recorded.choice.ids[: len(rows)], recorded.choice.logprobs[: len(rows)])
        self.sampler.chosen([row.slot for row in rows], choice)
        return choice

    def _recorded_for(self, rows: tuple[Row, ...], step: StepInput, wanted: Sequence[int]) -> RecordedStep | None:
        """The recording of this step; None where none can be."""
        bucket = self._bucket(rows, step, is_decode=step.num_tokens == len(rows) == len(wanted))
        if bucket is None:
            return None
        variant = self.attention.variant(bucket[0], int(step.context_lens.max()))
        size = _Size(*bucket, variant, not wanted or self.sampler.is_plain([rows[index].slot for index in wanted]))
        if size not in self._recorded:
            self._met[size] = self._met.get(size, 0) + 1
            if self._met[size] < self._enough(size):
                return None
            self._record(size)
        return self._recorded[size]

    def _enough(self, size: _Size) -> int:
        """Meetings that are worth a recording; a decode that is going to be recorded anyway is not run in another way
        first, which other kernels would be compiled for."""
        if size.tokens is None:
            return 1 if self.backend.capabilities.record_ahead else self.decodes_met
        return self.mixtures_met

    def _bucket(self, rows: tuple[Row, ...], step: StepInput, *, is_decode: bool) -> tuple[int, int | None] | None:
        """Rows and tokens that a step is padded to; see `_Size`."""
        begins = step.source is not None and bool(step.source.starts[-1])
        if self.layer_by_layer or self._waits or begins:
            return None
        capabilities = self.backend.capabilities
        if is_decode:  # of each row the last token, so that no log-probability of a prompt is wanted
            found = _at_least(len(rows), capabilities.batch_buckets)
            return (found, None) if found else None
        if any(self._wants_prompt_logprobs(row) for row in rows):
            return None
        found = _at_least(len(rows), capabilities.mixture_buckets)
        tokens = _at_least(step.num_tokens, capabilities.token_buckets)
        return (found, tokens) if found and tokens else None

    @cached_property
    def _waits(self) -> bool:
        """Whether the model does, which is looked up when its weights are there."""
        return any(getattr(module, "waits_for_device", False) for module in self.model.modules())

    @torch.inference_mode()
    def warm_up(self, info: EngineInfo, progress: Callable[[float, str], None]) -> None:
        """Let kernels of the smallest decode be compiled, while others are that the first step wants."""
        for size in itertools.islice(self._foresee(), 1):
            if (step := self._to_record(size)) is not None:
                with compiling.ahead():
                    step.run(self.model, self.sampler)

    @torch.inference_mode()
    def prepare(self) -> bool:
        """See `Runner`; records one size at most, after it has had kernels compiled for steps that are not recorded.

        Those whose kernels are being compiled wait for these, and others take their turn; not where other ranks do the
        same, whose compilers may be faster.
        """
        until = time.perf_counter() + TRIES_S
        try:
            with self.group.together("getting ready for steps"):
                if (step := self._next_unrecorded()) is not None:
                    self._compile_for(step)
                    return True
                while (size := self._next_size()) is not None:
                    if self._try_to_record(size) or time.perf_counter() >= until:
                        return True
        except RanksApart:
            raise
        except Exception:
            log.exception("steps that could not be recorded are called layer by layer")
            return True
        if self._compiling:
            time.sleep(POLL_S)
        return bool(self._compiling)

    def _try_to_record(self, size: _Size) -> bool:
        """False: it waits for kernels."""
        try:
            self._record(size, waits=self.group.size > 1)
        except compiling.StillCompiling as kernels:
            del self._recorded[size]
            self._compiling[size] = kernels.is_done
            return False
        return True

    def _next_size(self) -> _Size | None:
        """What steps had, then what waited for kernels that are there now, then what requests are going to want."""
        if size := next((size for size in self._met if size not in self._compiling), None):
            return size
        if self._compiling and not self._has_memory():  # what steps have had is recorded when they have it again
            self._compiling.clear()
        compiled = next((size for size, is_done in self._compiling.items() if is_done()), None)
        return compiled or self._next_foreseen()

    def _has_memory(self) -> bool:
        """For another recording ahead, on all ranks."""
        return self.group.least(self.backend.free_bytes()) >= SPARE_BYTES

    def _next_foreseen(self) -> _Size | None:
        """A size that requests are going to want."""
        if self._foreseen is None:
            self._foreseen = self._foresee()
        new = (size for size in self._foreseen if size not in self._recorded and size not in self._compiling)
        return next(new, None)

    def _foresee(self) -> Iterator[_Size]:
        """All sizes, those of short sequences and greedy ones first."""
        if not self._records_ahead:
            return
        capabilities, slots, most = self.backend.capabilities, self.slots.padding_slot, self._longest
        lengths = [min(SHORT << doubled, most) for doubled in range((most // SHORT).bit_length() + 1)]
        decodes = [(rows, None) for rows in capabilities.batch_buckets if rows <= slots]
        mixtures = list(itertools.product(capabilities.mixture_buckets, capabilities.token_buckets))
        for chooses, wanted in ((True, decodes + mixtures), (False, decodes)):
            for length in lengths:
                for rows, tokens in wanted:
                    if not self._has_memory():
                        return
                    yield _Size(rows, tokens, self.attention.variant(rows, length), chooses)

    @property
    def _records_ahead(self) -> bool:
        return self.backend.capabilities.record_ahead and not self.layer_by_layer and not self._waits

    @property
    def _longest(self) -> int:
        """Tokens of a sequence."""
        return self.slots.blocks_per_sequence * self.attention.block_size

    def _next_unrecorded(self) -> StepInput | None:
        if self._unrecorded is None:
            block_size = self.attention.block_size
            takes = self._records_ahead and all(spec.kind == "causal" for spec in self.attention.specs)
            # the last block may hold positions that the model does not know
            self._unrecorded = unrecorded_steps(self._longest - block_size, block_size) if takes else iter(())
        return next(self._unrecorded, None)

    def _compile_for(self, step: StepInput) -> None:
        """Have what it wants compiled."""
        with compiling.ahead():
            context = ForwardContext(self.backend.upload(positions(step)), self.attention.prepare(step))
            hidden = self.model(self.backend.upload(np.zeros(step.num_tokens, dtype=np.int64)), context)
            self.sampler.greedy(self.model.logits(hidden[: len(step.context_lens)]))

    def _record(self, size: _Size, *, waits: bool = True) -> None:
        """Keep the recording of a size, or None where there can be none.

        Raises:
            StillCompiling: it does not wait for kernels that are not there.
        """
        self._met.pop(size, None)
        self._compiling.pop(size, None)
        self._recorded[size] = None  # also if recording fails
        started = time.perf_counter()
        try:
            self._recorded[size] = self._recording(size, waits=waits)
            log.info("recorded steps of %d tokens in %.2f s", size.tokens or size.rows, time.perf_counter() - started)
        except UnrecordableStep as reason:
            log.info("steps of %d tokens are called layer by layer: %s", size.tokens or size.rows, reason)

    def _recording(self, size: _Size, *, waits: bool) -> RecordedStep | None:
        """Run once with padding alone, then record.

        Kernels that are not there are compiled side by side; among ranks, which would wait for one that leaves kernels
        out, all leave out all at first.
        """
        if (recorded := self._to_record(size)) is None:
            return None
        with compiling.ahead(urgent=waits, launches=self.group.size == 1) as missing:
            recorded.run(self.model, self.sampler)
        if missing.jobs and not waits:
            raise compiling.StillCompiling(missing.is_done)
        if missing.leaves_out:
            recorded.run(self.model, self.sampler)
        recorded.replay = self.backend.capture(lambda: recorded.run(self.model, self.sampler))
        return recorded

    def _to_record(self, size: _Size) -> RecordedStep | None:
        attention = self.attention.fixed(size.rows, size.tokens, self.slots.blocks_per_sequence, size.variant)
        if attention is None:
            return None
        kind = RecordedDecode if size.tokens is None else partial(RecordedMixture, tokens=size.tokens)
        return kind(size.rows, self.slots, attention, self.backend, chooses=size.chooses)


def _at_least(wanted: int, buckets: Sequence[int]) -> int | None:
    return next((size for size in buckets if size >= wanted), None)
