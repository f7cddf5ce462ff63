"""The runner of devices that repeat a recorded step faster than Python can tell them what to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from tgi_core.attention.base import ForwardContext, StepInput
from tgi_core.device.backend import UnrecordableStep
from tgi_core.errors import RanksApart
from tgi_core.kernels import compiling
from tgi_core.models.base import EncoderDecoderLM
from tgi_core.runner.eager import EagerRunner, Launched
from tgi_core.runner.recorded import RecordedDecode, RecordedMixture, RecordedSources, RecordedStep, Recording
from tgi_core.runner.rehearsal import FEWEST, Bounds, rehearse, unrecorded_steps
from tgi_core.runner.sizes import Size, Sizes
from tgi_core.sampling.sampler import Choice
from tgi_core.stats import EngineInfo
from tgi_core.step import Row

log = logging.getLogger(__name__)

SPARE_BYTES = 1 << 30  #: of the device's memory, that recordings ahead leave
TRIES_S = 0.03  #: in which steps are taken ahead, in one `prepare`
POLL_S = 0.005  #: between looks at kernels that are being compiled


class GraphRunner(EagerRunner):
    """Replays steps; larger ones and rarer kinds are called layer by layer.

    So are the first steps of a size, which is recorded when there is time, or when it has been met so often.  Where the
    device records ahead, decodes are recorded when they are met, and sizes that nobody has met come last.
    """

    decodes_met, mixtures_met = 2, 4  #: recording holds up a step, and decodes come again and again

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._met: dict[Size, int] = {}  # how often; not yet recorded, in an order that is the same on all ranks
        self._recorded: dict[Size, Recording | None] = {}
        self._compiling: dict[Size, compiling.Missing] = {}  # kernels that these wait for; not yet recorded
        self._bounds: Bounds | None = None  # of steps that are not recorded; known when warm

    def _launch(self, rows: tuple[Row, ...]) -> Launched:
        step = self.slots.step_input(rows)
        wanted = [index for index, row in enumerate(rows) if row.wants_token]
        recorded = self._recorded_for(rows, step, wanted)
        if recorded is None:
            return self._launch_eagerly(rows, step)
        if _begins(step):
            self._read_sources(rows, step)
        recorded.fill(rows, step, wanted)
        recorded.replay()
        return self._launched(rows, wanted, self._choice([rows[index] for index in wanted], recorded), {})

    def close(self) -> None:
        for missing in self._compiling.values():
            missing.give_up()
        self._met.clear()
        self._recorded.clear()
        self._compiling.clear()
        self._first = self._rest = iter(())

    def _choice(self, rows: Sequence[Row], recorded: RecordedStep) -> Choice | None:
        if not rows:
            return None
        if recorded.choice is None:
            return self._sample(rows, recorded.logits[: len(rows)])
        choice = Choice(recorded.choice.ids[: len(rows)], recorded.choice.logprobs[: len(rows)])
        self.sampler.chosen([row.slot for row in rows], choice)
        return choice

    def _recorded_for(self, rows: tuple[Row, ...], step: StepInput, wanted: Sequence[int]) -> RecordedStep | None:
        """The recording of this step, with sources left out; None where none can be."""
        bucket = self._bucket(rows, step, is_decode=step.num_tokens == len(rows) == len(wanted))
        if bucket is None:
            return None
        chooses = not wanted or self.sampler.is_plain([rows[index].slot for index in wanted])
        found = self._recorded_as(self._sizes.of(*bucket, int(step.context_lens.max()), chooses=chooses))
        return found if isinstance(found, RecordedStep) else None

    def _read_sources(self, rows: tuple[Row, ...], step: StepInput) -> None:
        """Run the encoder over the sources that begin, before the step of their decoder."""
        sources = self.slots.sources(rows)
        bucket = self._mixture_bucket(len(sources), sum(map(len, sources)))
        recorded = self._recorded_as(self._sizes.of_sources(*bucket)) if bucket else None
        if recorded is not None:
            recorded.fill(rows, step, ())
            recorded.replay()
        elif isinstance(self.model, EncoderDecoderLM) and (encoder := self.slots.encoder_input(rows)) is not None:
            self.model.encode(ForwardContext(encoder.positions[:0], self.attention.prepare(step), encoder))

    def _recorded_as(self, size: Size) -> Recording | None:
        """What was recorded of a size; None if nothing can be, it was not met often enough, or there is no memory for a
        mixture."""
        if size not in self._recorded:
            self._met[size] = self._met.get(size, 0) + 1
            if self._met[size] < self._enough(size) or not (size.tokens is None or self._has_memory()):
                return None
            self._record(size)
        return self._recorded[size]

    def _enough(self, size: Size) -> int:
        """Meetings that are worth a recording; a decode that is going to be recorded anyway is not run in another way
        first, which other kernels would be compiled for."""
        if size.tokens is None:
            return 1 if self.backend.capabilities.record_ahead else self.decodes_met
        return self.mixtures_met

    def _bucket(self, rows: tuple[Row, ...], step: StepInput, *, is_decode: bool) -> tuple[int, int | None] | None:
        """Rows and tokens that a step is padded to; see `Size`."""
        if self.layer_by_layer or self._waits or (_begins(step) and not self._reads_apart):
            return None
        if is_decode:  # of each row the last token, so that no log-probability of a prompt is wanted
            found = _at_least(len(rows), self.backend.capabilities.batch_buckets)
            return (found, None) if found else None
        if step.source is not None or any(self._wants_prompt_logprobs(row) for row in rows):
            return None
        return self._mixture_bucket(len(rows), step.num_tokens)

    def _mixture_bucket(self, rows: int, tokens: int) -> tuple[int, int] | None:
        found = _at_least(rows, self.backend.capabilities.mixture_buckets)
        most = _at_least(tokens, self.backend.capabilities.token_buckets)
        return (found, most) if found and most else None

    @property
    def _has_sources(self) -> bool:
        return any(spec.kind != "causal" for spec in self.attention.specs)

    @property
    def _reads_apart(self) -> bool:
        """Whether sources are read before the step of their decoder."""
        return isinstance(self.model, EncoderDecoderLM) and self.attention.keeps_sources

    @cached_property
    def _waits(self) -> bool:
        """Whether the model does, which is looked up when its weights are there."""
        return any(getattr(module, "waits_for_device", False) for module in self.model.modules())

    @cached_property
    def _sizes(self) -> Sizes:
        """Looked up when keys and values have their memory."""
        most = self.slots.blocks_per_sequence * self.attention.block_size
        slots, capabilities = self.slots.padding_slot, self.backend.capabilities
        return Sizes(self.attention, capabilities, slots, most, sources=self._reads_apart)

    @property
    def _records_ahead(self) -> bool:
        return self.backend.capabilities.record_ahead and not self.layer_by_layer and not self._waits

    @property
    def _looks_ahead(self) -> bool:
        """Whether steps may be taken for their kernels."""
        return self._records_ahead and self.attention.can_be_ahead

    @torch.inference_mode()
    def warm_up(self, info: EngineInfo, progress: Callable[[float, str], None]) -> None:
        """Have the kernels of the smallest decode compiled, while those are that the first step wants."""
        recorded = max((few for few in self.backend.capabilities.token_buckets if few < FEWEST), default=0)
        most = info.max_batch_size, info.max_batch_prefill_tokens
        self._bounds = Bounds(*most, recorded, info.max_total_tokens, self.attention.block_size)
        if self._looks_ahead and (size := next(self._sizes.first(), None)) is not None:
            self._compile_for(size)

    @torch.inference_mode()
    def prepare(self) -> bool:
        """See `Runner`; has kernels compiled for some steps, or records one size whose kernels are there.

        Ranks do not look whether they are there, as they record together, and their compilers are not equally fast.
        """
        until = time.perf_counter() + TRIES_S
        while True:
            wanted = self._next_wanted()
            if wanted is None and (size := self._next_compiled()) is not None:
                with self._guarded():
                    self._record(size)
                return True
            wanted = wanted or next(self._rest, None)
            if wanted is None:
                break
            self._compile_for(wanted)
            if self.group.size > 1 or time.perf_counter() >= until:
                return True
        if self._compiling:
            time.sleep(POLL_S)
        return bool(self._compiling)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What fails for one step is told, and does not keep the engine from others."""
        try:
            with self.group.together("getting ready for a step"):
                yield
        except RanksApart:
            raise
        except Exception:
            log.exception("a step could not be made ready; it is called layer by layer, or compiled when it comes")

    def _next_wanted(self) -> Size | StepInput | None:
        """For which kernels may be missing: what steps had, then what requests want first."""
        return next((size for size in self._met if size not in self._compiling), None) or next(self._first, None)

    @cached_property
    def _first(self) -> Iterator[Size | StepInput]:
        yield from self._new(self._sizes.first())
        if self._looks_ahead and self._bounds and all(spec.kind == "causal" for spec in self.attention.specs):
            yield from unrecorded_steps(self._bounds)

    @cached_property
    def _rest(self) -> Iterator[Size]:
        """When what is compiled is recorded."""
        return self._new(self._sizes.all())

    def _new(self, sizes: Iterator[Size]) -> Iterator[Size]:
        """Sizes that nothing was done for, as long as there is memory for more; none where they wait to be met."""
        for size in sizes if self._records_ahead else ():
            if size not in self._recorded and size not in self._compiling:
                if not self._has_memory():
                    return
                yield size

    def _compile_for(self, wanted: Size | StepInput) -> None:
        """Have the kernels of a step compiled that are not there; a size waits for them."""
        with self._guarded(), compiling.ahead() as missing:
            if isinstance(wanted, Size):
                self._compiling[wanted] = missing
                if self._looks_ahead and (step := self._to_record(wanted)) is not None:
                    step.run(self.model, self.sampler)
            else:
                self.sampler.greedy(rehearse(wanted, self.model, self.attention, self.backend))

    def _next_compiled(self) -> Size | None:
        """A size whose kernels are there, first of those that steps had."""
        if self._compiling and not self._has_memory():  # there may be some for what steps had
            self._compiling = {size: missing for size, missing in self._compiling.items() if size in self._met}
        there = [size for size, missing in self._compiling.items() if self.group.size > 1 or missing.is_done()]
        return next((size for size in there if size in self._met), next(iter(there), None))

    def _has_memory(self) -> bool:
        """For another recording ahead, on all ranks."""
        return self.group.least(self.backend.free_bytes()) >= SPARE_BYTES

    def _record(self, size: Size) -> None:
        """Keep the recording of a size, or None where there can be none."""
        self._met.pop(size, None)
        self._compiling.pop(size, None)
        self._recorded[size] = None  # also if recording fails
        started = time.perf_counter()
        try:
            self._recorded[size] = self._recording(size)
            log.info("recorded steps of %d tokens in %.2f s", size.tokens or size.rows, time.perf_counter() - started)
        except UnrecordableStep as reason:
            log.info("steps of %d tokens are called layer by layer: %s", size.tokens or size.rows, reason)

    def _recording(self, size: Size) -> Recording | None:
        """Run once with padding alone, then record.

        Kernels that are still not there are compiled side by side; among ranks, which would wait for one that leaves
        kernels out, all leave out all at first.
        """
        if (recorded := self._to_record(size)) is None:
            return None
        with compiling.ahead(urgent=True, launches=self.group.size == 1) as missing:
            recorded.run(self.model, self.sampler)
        if missing.leaves_out:
            recorded.run(self.model, self.sampler)
        recorded.replay = self.backend.capture(lambda: recorded.run(self.model, self.sampler))
        return recorded

    def _to_record(self, size: Size) -> Recording | None:
        if size.tokens is not None and self._has_sources and not self._reads_apart:
            return None
        attention = self.attention.fixed(size.rows, size.tokens, self.slots.blocks_per_sequence, size.variant)
        if attention is None:
            return None
        parts = size.rows, self.slots, attention, self.backend
        if size.tokens is None:
            return RecordedDecode(*parts, chooses=size.chooses)
        if self._reads_apart:
            return RecordedSources(*parts, tokens=size.tokens)
        return RecordedMixture(*parts, tokens=size.tokens, chooses=size.chooses)


def _begins(step: StepInput) -> bool:
    """Whether a source does."""
    return step.source is not None and bool(step.source.starts[-1])


def _at_least(wanted: int, buckets: Sequence[int]) -> int | None:
    return next((size for size in buckets if size >= wanted), None)
