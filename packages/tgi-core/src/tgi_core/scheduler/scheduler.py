"""Turns waiting and running sequences into one step after another.

A request waits, is admitted to a slot, has its prompt prefilled (in chunks, where the device can), decodes one token a
step, and leaves.  When KV blocks run out the least urgent running sequence is preempted: its blocks are released, and
it is prefilled again later, output included.  Steps overlap the device: a step may be planned while the results of
the one before are still on the way.

Of an encoder-decoder the prompt is the source, which the encoder reads at once, in the step of the sequence's first
row; the decoder's sequence begins with the start tokens.  Blocks for the source come before the decoder's own.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from operator import attrgetter

from tgi_core.device.capabilities import Capabilities
from tgi_core.errors import InvalidRequest
from tgi_core.kvcache.manager import KVCacheManager
from tgi_core.request import Request, RequestOutput
from tgi_core.scheduler.finish import FinishRule
from tgi_core.scheduler.limits import Limits
from tgi_core.scheduler.policy import may_admit
from tgi_core.scheduler.queue import RequestQueue
from tgi_core.scheduler.sequence import Sequence
from tgi_core.step import Admission, Row, RowResult, StepKind, StepPlan, StepResult

URGENCY = attrgetter("urgency")


@dataclass(slots=True)
class StepCounts:
    """What the plans and reports since the last `Scheduler.take_counts` added up to."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    prefix_hits: int = 0
    prefix_queries: int = 0


@dataclass(slots=True)
class _Draft:
    """A step while it is planned."""

    prefill_budget: int  #: prompt tokens that still fit
    spare: int = 0  #: of these, for the rest of a prompt that is in it already
    rows: list[Row] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)  #: of the rows
    admissions: list[Admission] = field(default_factory=list)
    kinds: set[StepKind] = field(default_factory=set)

    @property
    def kind(self) -> StepKind:
        return "mixed" if len(self.kinds) > 1 else next(iter(self.kinds))


class Scheduler:
    """Owns every request from `add` until its last output or `abort`.

    Args:
        decoder_start_ids: with which the decoder of an encoder-decoder begins; () for decoders.

    Raises:
        ValueError: prefixes of an encoder-decoder would be cached: they look alike whatever the source is.
    """

    def __init__(
        self,
        limits: Limits,
        capabilities: Capabilities,
        kv: KVCacheManager,
        finish: FinishRule,
        decoder_start_ids: tuple[int, ...] = (),
    ) -> None:
        if decoder_start_ids and kv.prefix_caching:
            raise ValueError("the prefix cache cannot serve encoder-decoders; switch prefix caching off")
        self.limits, self.capabilities, self.kv, self.finish = limits, capabilities, kv, finish
        self.decoder_start_ids = decoder_start_ids
        self.mixed_tokens = capabilities.mixed_tokens  #: see there; the engine measures how many they should be
        self.waiting = RequestQueue()
        self.running: dict[int, Sequence] = {}
        self.batch_max_tokens = 0  #: that the running ones may come to have
        #: the running ones of whose prompt more than the last token is neither computed nor on the way
        self.reading: set[int] = set()
        self._free_slots = list(range(limits.max_batch_size))  # a heap: lowest first
        self._in_flight: dict[int, list[Sequence]] = {}  # plan number -> sequences of its rows
        self._arrivals = 0
        self._plans = 0
        self._last_kind: StepKind = "decode"
        self._counts = StepCounts()

    # ---- requests -------------------------------------------------------------------------------------------------

    def add(self, request: Request, seed: int) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it breaks a limit, or its id is in use.
        """
        self.limits.check(request)
        if request.id in self.running or request.id in self.waiting:
            raise InvalidRequest(f"request id {request.id} is in use")
        self._arrivals += 1
        reserved = self.kv.blocks_for(len(request.prompt_ids)) * self.kv.block_size if self.decoder_start_ids else 0
        self.waiting.push(Sequence(request, seed, self._arrivals, self.decoder_start_ids, reserved))

    def abort(self, request_id: int) -> bool:
        """End a request at any moment; unknown and finished ids are ignored."""
        if self.waiting.remove(request_id) is not None:
            return True
        if request_id in self.running:
            self._leave(self.running[request_id])
            return True
        return False

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.running or self.waiting)

    def take_counts(self) -> StepCounts:
        """Counts since the last call."""
        counts, self._counts = self._counts, StepCounts()
        return counts

    # ---- planning -------------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan | None:
        """The next step; None when nothing can run until results come back or requests arrive."""
        draft = self._draft_mixed() if self.capabilities.mixed_batches else self._draft_one_phase()
        if not draft.rows:
            return None
        self._plans += 1
        self._last_kind = draft.kind
        self._in_flight[self._plans] = draft.sequences
        return StepPlan(self._plans, draft.kind, tuple(draft.rows), tuple(draft.admissions))

    def _draft_mixed(self) -> _Draft:
        budget = max(self._prompt_budget(), self.kv.block_size)
        draft = _Draft(budget, self._spare(budget))
        self._continue_running(draft, decode=True, prefill=True)
        self._admit(draft)
        return draft

    def _prompt_budget(self) -> int:
        """Tokens of prompts beside all decodes: fewer where more requests decode, and are held up by prompts, than wait
        for theirs."""
        decoding = len(self.running) - len(self.reading)
        most, waiting = self.limits.max_batch_prefill_tokens - decoding, len(self.waiting) + len(self.reading)
        return most if self.mixed_tokens is None or decoding < max(waiting, 1) else min(most, self.mixed_tokens)

    def _spare(self, budget: int) -> int:
        """What is more than half of the largest step, and more than is read in a moment, where steps are kept short
        beside decodes, so that first tokens do not wait for many others' prompts."""
        if self.mixed_tokens is None:
            return 0
        half = -(-self.limits.max_batch_prefill_tokens // 2)
        return max(0, budget - max(half, self.mixed_tokens))

    def _draft_one_phase(self) -> _Draft:
        """Prefill or decode, in turn, so that neither waits for the other's end.

        Every decode has every live slot in it, which devices that corrupt left-out slots need.
        """
        draft = _Draft(self.limits.max_batch_prefill_tokens)
        if self._last_kind == "decode" or len(self.reading) == len(self.running):
            self._continue_running(draft, decode=False, prefill=True)
            self._admit(draft)
        if not draft.rows:
            self._continue_running(draft, decode=True, prefill=False)
        return draft

    def _continue_running(self, draft: _Draft, *, decode: bool, prefill: bool) -> None:
        """Rows for running sequences, the most urgent first.

        Where blocks run out the least urgent one is preempted; in this order it has no row yet.
        """
        for sequence in sorted(self.running.values(), key=URGENCY):
            if not sequence.is_running or not sequence.wants_step:
                continue
            reads = sequence.id in self.reading
            if not (prefill if reads else decode):
                continue
            length = min(sequence.uncomputed, draft.prefill_budget) if reads else 1
            if length and (blocks := self._make_room(sequence, sequence.computed + length)) is not None:
                self._plan_row(draft, sequence, length, blocks)

    def _make_room(self, sequence: Sequence, num_tokens: int) -> tuple[int, ...] | None:
        """Blocks added to a running sequence's table; None when it had to be preempted itself."""
        if sequence.reserved + num_tokens <= sequence.room:
            return ()
        while (added := self._extend(sequence, num_tokens)) is None:
            victim = max(self.running.values(), key=URGENCY)
            self._preempt(victim)
            if victim is sequence:
                return None
        return added

    def _extend(self, sequence: Sequence, num_tokens: int) -> tuple[int, ...] | None:
        """Blocks added for so many tokens of its own; None where there are too few."""
        added = self.kv.extend(sequence.id, sequence.reserved + num_tokens)
        sequence.room += len(added or ()) * self.kv.block_size
        return added

    def _admit(self, draft: _Draft) -> None:
        """Rows for waiting sequences, while slots, blocks and the prompt budget last."""
        most_rows = self.capabilities.prefill_rows or self.limits.max_batch_size
        while self._free_slots and draft.prefill_budget > draft.spare and len(draft.admissions) < most_rows:
            sequence = self.waiting.peek()
            if sequence is None or sequence.pending:
                return
            found = self._match(sequence)
            uncached = len(sequence.tokens) - len(found) * self.kv.block_size
            length = min(uncached, draft.prefill_budget)
            if sequence.source or not self.capabilities.chunked_prefill:
                if len(sequence.source) + uncached > draft.prefill_budget and "prefill" in draft.kinds:
                    return
                length = uncached
            if not may_admit(sequence, found, self.running.values(), self.kv):
                return
            self._enter(draft, self.waiting.pop(), found)
            added = self._extend(sequence, sequence.computed + length) or ()
            self._plan_row(draft, sequence, length, (*found, *added))

    def _match(self, sequence: Sequence) -> list[int]:
        """Blocks that hold its beginning; where steps are not mixed they leave two tokens, as one would be a decode."""
        if sequence.request.params.prompt_logprobs:
            return []
        found = self.kv.match(sequence.tokens, sequence.request.cache_salt)
        is_decode = len(sequence.tokens) - len(found) * self.kv.block_size == 1
        return found[:-1] if is_decode and not self.capabilities.mixed_batches else found

    def _enter(self, draft: _Draft, sequence: Sequence, found: list[int]) -> None:
        """Give a waiting sequence a slot and the blocks that hold its beginning."""
        sequence.slot = heapq.heappop(self._free_slots)
        sequence.computed = sequence.room = len(found) * self.kv.block_size
        self.kv.open(sequence.id, sequence.request.cache_salt, found)
        source_blocks = self._extend(sequence, 0) or ()
        self.running[sequence.id] = sequence
        if not sequence.computed or sequence.uncomputed > 1:
            self.reading.add(sequence.id)
        self.batch_max_tokens += sequence.max_len
        self._counts.prefix_hits += sequence.computed
        self._counts.prefix_queries += len(sequence.tokens)
        if not sequence.scheduled_at:
            sequence.scheduled_at = time.monotonic()
            sequence.cached_tokens = sequence.computed
        draft.admissions.append(
            Admission(
                sequence_id=sequence.id,
                slot=sequence.slot,
                params=sequence.request.params,
                seed=sequence.seed,
                tokens=tuple(sequence.tokens),
                prompt_len=sequence.prompt_len,
                source=sequence.source,
                source_blocks=source_blocks,
            )
        )

    def _plan_row(self, draft: _Draft, sequence: Sequence, length: int, new_blocks: tuple[int, ...]) -> None:
        start, wants_token = sequence.computed, length == sequence.uncomputed
        tokens = tuple(sequence.tokens[start : start + length]) if start < len(sequence.tokens) else None
        sequence.computed += length
        sequence.pending += wants_token
        if sequence.id in self.reading:
            draft.kinds.add("prefill")
            read = length if start else length + len(sequence.source)
            self._counts.prefill_tokens += read
            draft.prefill_budget -= read
            if sequence.uncomputed == 1:
                self.reading.remove(sequence.id)
        else:
            draft.kinds.add("decode")
            self._counts.decode_tokens += 1
        draft.rows.append(Row(sequence.id, sequence.slot, start, length, tokens, new_blocks, wants_token))
        draft.sequences.append(sequence)

    # ---- results --------------------------------------------------------------------------------------------------

    def report(self, plan: StepPlan, result: StepResult) -> list[RequestOutput]:
        """Take over the results of a plan.  Rows of sequences that left in the meantime are dropped."""
        outputs = []
        for sequence, row, row_result in zip(self._in_flight.pop(plan.number), plan.rows, result.rows, strict=True):
            if row.wants_token:
                sequence.pending -= 1
            if self._owns(sequence) and (output := self._report_row(sequence, row, row_result)):
                outputs.append(output)
        return outputs

    def fail(self, plan: StepPlan, error: str) -> list[RequestOutput]:
        """A whole step failed: its sequences end with an error, all others go on."""
        return self.report(plan, StepResult([RowResult(row.sequence_id, error=error) for row in plan.rows]))

    def _owns(self, sequence: Sequence) -> bool:
        return sequence.is_running or self.waiting.get(sequence.id) is sequence

    def _report_row(self, sequence: Sequence, row: Row, result: RowResult) -> RequestOutput | None:
        if result.error:
            return self._fail_sequence(sequence, result.error)
        if sequence.prompt_logprobs is not None and row.start < sequence.prompt_len:
            del sequence.prompt_logprobs[row.start + 1 :]
            sequence.prompt_logprobs.extend(result.prompt_logprobs)
        if result.token_id is not None:
            sequence.tokens.append(result.token_id)
        if sequence.is_running and (row.start + row.length) % self.kv.block_size < row.length:  # fills a block
            self.kv.commit(sequence.id, sequence.tokens, min(row.start + row.length, len(sequence.tokens)))
        if result.token_id is None:
            return None
        reason = self.finish.reason(
            sequence.request.params, result.token_id, len(sequence.tokens) - sequence.prompt_len
        )
        output = RequestOutput(
            request_id=sequence.id, token_ids=[result.token_id], logprobs=[result.logprob], finish_reason=reason
        )
        if sequence.request.params.top_n_tokens:
            output.top_logprobs = [result.top_logprobs]
        if not sequence.reported:
            self._introduce(sequence, output)
        if reason:
            self._leave(sequence)
        return output

    def _introduce(self, sequence: Sequence, output: RequestOutput) -> None:
        """Facts that only the first output of a request carries."""
        sequence.reported = True
        output.cached_tokens = sequence.cached_tokens
        output.scheduled_at = sequence.scheduled_at
        output.prompt_logprobs = sequence.prompt_logprobs
        output.seed = sequence.seed if sequence.request.params.do_sample else None

    def _fail_sequence(self, sequence: Sequence, error: str) -> RequestOutput:
        if sequence.id in self.running:
            self.kv.discard(sequence.id)
        self._leave(sequence)
        return RequestOutput(request_id=sequence.id, finish_reason="error", error=error)

    # ---- leaving --------------------------------------------------------------------------------------------------

    def _preempt(self, sequence: Sequence) -> None:
        """Release slot and blocks; the sequence waits at its old place and starts over, output included."""
        self._release(sequence)
        sequence.computed, sequence.preemptions = 0, sequence.preemptions + 1
        self._counts.preemptions += 1
        self.waiting.push(sequence)

    def _leave(self, sequence: Sequence) -> None:
        if sequence.id in self.running:
            self._release(sequence)
        else:
            self.waiting.remove(sequence.id)

    def _release(self, sequence: Sequence) -> None:
        """Blocks and slot may be reused by the next plan at once, because a device runs its steps in order."""
        del self.running[sequence.id]
        self.reading.discard(sequence.id)
        self.batch_max_tokens -= sequence.max_len
        self.kv.close(sequence.id)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot, sequence.room = -1, 0
