"""The engine: requests in, tokens out, one step at a time.  Needs no server."""

from __future__ import annotations

import itertools
import secrets
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random

from tgi_core.config import EngineConfig
from tgi_core.distributed.group import ALONE, Group
from tgi_core.engine.build import Parts, Progress, build
from tgi_core.engine.calibration import calibration
from tgi_core.engine.model_files import make_tokenizer
from tgi_core.engine.observers import Observers
from tgi_core.engine.place import Place, find_place
from tgi_core.engine.rank_messages import Calibrate, Calibrated, ToRank
from tgi_core.engine.ranks import Ranks, exit_at_once
from tgi_core.errors import InvalidRequest, RequestFailed, TGIError
from tgi_core.request import Request, RequestOutput
from tgi_core.runner.base import Handle, Runner
from tgi_core.runner.leading import LeadingRunner
from tgi_core.runner.rehearsal import FIRST_TOKENS
from tgi_core.sampling_params import SamplingParams
from tgi_core.stats import EngineInfo, StepStats
from tgi_core.step import StepPlan
from tgi_core.tokenizer.detokenizer import TextStream
from tgi_core.tokenizer.tokenizer import Tokenizer

MIXED_S = 0.045  #: that decodes wait for the prompts of others
FEWEST_MIXED = 256  #: tokens of prompts, with fewer of which a device would not be busy


@dataclass(frozen=True)
class Completion:
    """What `Engine.generate` returns for one prompt."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


class Engine:
    """A model that continues prompts.

        >>> engine = Engine(EngineConfig(model_id="path/to/model"))
        >>> engine.generate(["The capital of France is"], SamplingParams(max_new_tokens=8))[0].text

    Not thread-safe: add, abort and step from one thread.  With `num_shard` it starts the other ranks itself; `close`
    ends them.

    Args:
        progress: told how far loading is.
        group: to be one rank of it, where every rank makes the same calls in the same order, and brings seeds for
            what it samples; for tests of layers.
        give_up: see `Ranks`.

    Raises:
        TGIError: the model cannot be loaded or a setting is impossible; the message says what to do.
    """

    def __init__(
        self,
        config: EngineConfig | None = None,
        progress: Progress = lambda phase, fraction, detail: None,
        group: Group = ALONE,
        give_up: Callable[[str], None] = exit_at_once,
    ) -> None:
        started = time.perf_counter()
        self.config, self._group = config or EngineConfig(), group
        self._end = ExitStack()
        self.close = weakref.finalize(self, self._end.close)  #: ends the other ranks; no step follows
        try:
            self._load(progress, give_up)
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - started

    def _load(self, progress: Progress, give_up: Callable[[str], None]) -> None:
        place = find_place(self.config)
        self._ranks = Ranks(self.config, place.ranks, give_up) if place.ranks > 1 else None
        if self._ranks is None:
            self._parts = build(self.config, place, progress, self._group)
            self.runner = self._parts.runner
        else:
            self._parts, self.runner = self._build_with(self._ranks, place, progress)
        self._end.callback(self._parts.backend.close)
        self.scheduler = self._parts.scheduler
        self.stats = self._step_stats(None, 0.0, 0.0)  #: of the last step
        self._depth = 2 if self._parts.scheduler.capabilities.asynchronous else 1
        self._in_flight: deque[tuple[StepPlan, Handle]] = deque()
        self._ids = itertools.count(1)
        self._tokenizer: Tokenizer | None = None
        self._observers = Observers()
        self._calibrate()
        self.runner.warm_up(self.info, lambda fraction, detail: progress("warmup", fraction, detail))
        progress("warmup", 1.0, "first step")
        if error := self._run([[0] * FIRST_TOKENS], 2):
            raise TGIError(f"the model failed on its first step: {error}")
        self._bound_mixtures()
        self._observers = Observers(self._parts.plugins)
        self._observers.engine_started(self.info)

    def _build_with(self, ranks: Ranks, place: Place, progress: Progress) -> tuple[Parts, Runner]:
        """This rank's parts, and a runner that leads the others."""

        def told(phase: str, fraction: float, detail: str) -> None:
            ranks.check()
            progress(phase, fraction, detail)

        self._end.callback(ranks.close)
        parts = build(self.config, place, told, ranks.group, ranks.begin)
        self._end.callback(_let_go, ranks, parts)
        ranks.wait_until_loaded()
        return parts, LeadingRunner(parts.runner, ranks.lead, ranks.waiting)

    def check(self) -> None:
        """Look whether everything that belongs to this engine lives; for while it has no work.

        Raises:
            RankLost: a rank ended.
        """
        if self._ranks is not None:
            self._ranks.check()

    @property
    def info(self) -> EngineInfo:
        """What this engine is and may be asked."""
        return self._parts.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = make_tokenizer(
                self._parts.plugins,
                self._parts.files,
                tokenizer_config_path=self.config.tokenizer_config_path,
                trust_remote_code=self.config.trust_remote_code,
            )
        return self._tokenizer

    # ---- requests -------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it breaks a limit; nothing was queued.
        """
        if request.params.grammar is not None:
            raise InvalidRequest("grammar is not supported")
        seed = secrets.randbits(64) if request.params.seed is None else request.params.seed
        self.scheduler.add(request, seed)
        self._observers.request_added(request)

    def abort(self, request_id: int) -> bool:
        """End a request; False if it is unknown or finished."""
        self._observers.aborted(request_id)
        return self.scheduler.abort(request_id)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return self.scheduler.has_work or bool(self._in_flight)

    def _calibrate(self) -> None:
        """Let a quantization see what the layers of its model are given, then load the weights again."""
        quantization = self._parts.quantization
        if quantization is None or not quantization.calibration_tokens:
            return
        self._tell(Calibrate())
        with calibration(self._parts):
            tokens = Random(0).choices(range(self.info.vocab_size), k=quantization.calibration_tokens)
            if error := self._run([tokens], 1):
                raise TGIError(f"the model failed on what its quantization is calibrated with: {error}")
            self._tell(Calibrated())

    def _bound_mixtures(self) -> None:
        """Let steps beside decodes take as many tokens of prompts as are read in MIXED_S: models and devices differ a
        hundredfold."""
        if self.scheduler.mixed_tokens is None or self._group.size > 1:  # whose ranks would not measure the same
            return
        most = self.info.max_batch_prefill_tokens
        tokens = min(self.scheduler.mixed_tokens, most)
        while (elapsed := self._seconds_of(tokens)) < MIXED_S and tokens < most:  # few are no measure of many
            tokens = min(2 * tokens, most)
        self.scheduler.mixed_tokens = min(most, max(FEWEST_MIXED, int(tokens * MIXED_S / elapsed)))

    def _seconds_of(self, tokens: int) -> float:
        """To read so many tokens of prompts, which are as long as they may be; nobody asks what comes of them, as there
        are models that compute no numbers for some token."""
        times, longest = [], self.info.max_input_tokens
        for _ in range(3):
            generator = Random(next(self._ids))  # so that nothing is cached
            ids = generator.choices(range(self.info.vocab_size), k=tokens)
            started = time.perf_counter()
            self._run([ids[start : start + longest] for start in range(0, tokens, longest)], 1)
            times.append(time.perf_counter() - started)
        return min(times[1:])  # the first time something may be compiled

    def _tell(self, order: ToRank) -> None:
        if self._ranks is not None:
            self._ranks.tell(order)

    def _run(self, prompts: list[list[int]], new_tokens: int) -> str:
        """Run prompts, cut to what fits; also so that the first request does not pay for first calls.

        Returns:
            why one of them failed; "" if none did.
        """
        error = ""
        for prompt in prompts:
            ids = prompt[: self.info.max_input_tokens]
            most = self.info.max_total_tokens - len(ids)
            params = SamplingParams(max_new_tokens=min(new_tokens, most), ignore_eos=True)
            self.add(Request(id=-next(self._ids), prompt_ids=ids, params=params))
        while self.has_work:
            for output in self.step():
                error = error or output.error
        return error

    # ---- steps ----------------------------------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Submit the next step, then take the results of the oldest one that is due.

        On a device that works by itself, the step after next is planned while this one runs.
        """
        started = time.perf_counter()
        plan = self.scheduler.schedule()
        if plan is not None:
            self._in_flight.append((plan, self.runner.submit(plan)))
        outputs: list[RequestOutput] = []
        forward_s = 0.0
        while self._in_flight and self._is_due(plan is None):
            outputs_of_step, step_s = self._collect()
            outputs += outputs_of_step
            forward_s += step_s
        self.stats = self._step_stats(plan, time.perf_counter() - started, forward_s)
        self._observers.step_finished(self.stats)
        self._observers.outputs(outputs)
        return outputs

    def prepare(self) -> bool:
        """Use a moment without work to make later steps faster; False if there is nothing left to do.

        In a `group` there is nothing: its ranks would not do so at the same time.
        """
        return self._group.size == 1 and self.runner.prepare()

    @property
    def prepares_ahead(self) -> bool:
        """Whether `prepare` has something to do before there were requests."""
        return self.scheduler.capabilities.record_ahead

    def _is_due(self, idle: bool) -> bool:
        """Whether the oldest submitted step must be, or can be, waited for now."""
        return idle or len(self._in_flight) >= self._depth or self._in_flight[0][1].done()

    def _collect(self) -> tuple[list[RequestOutput], float]:
        plan, handle = self._in_flight.popleft()
        result = handle.result()
        return self.scheduler.report(plan, result), result.forward_s

    def _step_stats(self, plan: StepPlan | None, duration_s: float, forward_s: float) -> StepStats:
        scheduler, counts = self.scheduler, self.scheduler.take_counts()
        blocks = scheduler.kv.pool.counts()
        return StepStats(
            kind=plan.kind if plan else "idle",
            duration_s=duration_s,
            forward_s=forward_s,
            prefill_tokens=counts.prefill_tokens,
            decode_tokens=counts.decode_tokens,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=blocks.free,
            cached_blocks=blocks.cached,
            held_blocks=blocks.held,
            batch_max_tokens=scheduler.batch_max_tokens,
            preemptions=counts.preemptions,
            prefix_hits=counts.prefix_hits,
            prefix_queries=counts.prefix_queries,
        )

    # ---- text -----------------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str | list[int]], params: SamplingParams | None = None) -> list[Completion]:
        """Continue all prompts, batched; token ids are taken as they are, text is tokenized with special tokens.

        Raises:
            InvalidRequest: a prompt breaks a limit, or requests queued with `add` still run; none is run.
            RequestFailed: the engine gave up on one.
        """
        if self.has_work:
            raise InvalidRequest("requests queued with `add` still run; `step` until `has_work` is False")
        params = params or SamplingParams()
        requests = [self._request(prompt, params) for prompt in prompts]
        for request in requests:
            self.scheduler.limits.check(request)
        collectors = {request.id: _Collector(self.tokenizer, params) for request in requests}
        for request in requests:
            self.add(request)
        while any(not collector.finish_reason for collector in collectors.values()):
            for output in self.step():
                if (collector := collectors.get(output.request_id)) and collector.add(output):
                    self.abort(output.request_id)
        return [collectors[request.id].completion() for request in requests]

    def _request(self, prompt: str | list[int], params: SamplingParams) -> Request:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return Request(id=-next(self._ids), prompt_ids=ids, params=params, arrived_at=time.monotonic())


def _let_go(ranks: Ranks, parts: Parts) -> None:
    """Forget what was recorded with other ranks."""
    if ranks.are_well:
        parts.backend.synchronize()
    parts.runner.close()


class _Collector:
    """Gathers the output of one request and watches for its stop strings."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self.stream = TextStream(tokenizer, stop=params.stop, include_stop=True)
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.text: list[str] = []
        self.finish_reason = self.error = ""

    def add(self, output: RequestOutput) -> bool:
        """Take over an output; True if a stop string ended the request, which goes on in the engine."""
        self.error = output.error
        for token, logprob in zip(output.token_ids, output.logprobs, strict=True):
            self.token_ids.append(token)
            self.logprobs.append(logprob)
            self.text.append(self.stream.add(token))
            if self.stream.stopped:
                self.finish_reason = "stop_sequence"
                return not output.finish_reason
        self.finish_reason = output.finish_reason
        return False

    def completion(self) -> Completion:
        """The whole output."""
        if self.finish_reason == "error":
            raise RequestFailed(self.error)
        return Completion("".join((*self.text, self.stream.flush())), self.token_ids, self.logprobs, self.finish_reason)
