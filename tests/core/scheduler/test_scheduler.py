"""The scheduler on devices without arithmetic: right tokens, no leaks, nobody starves, whatever happens."""

import random
from collections import deque
from dataclasses import replace

import pytest

from tgi_core.errors import InvalidRequest
from tgi_core.kvcache.manager import KVCacheManager
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.scheduler.finish import FinishRule
from tgi_core.scheduler.limits import Limits
from tgi_core.scheduler.scheduler import Scheduler
from tgi_core.step import RowResult, StepResult
from tgi_core.testing.fake_device import (
    VOCABULARY,
    FakeAsynchronousRunner,
    FakePagedRunner,
    FakeStaticRunner,
    expected_output,
)

RUNNERS = [FakePagedRunner, FakeAsynchronousRunner, FakeStaticRunner]


class OnePhaseRunner(FakePagedRunner):
    """Caches prefixes, and prefills, in chunks, or decodes in a step; takes one token after others for a decode."""

    capabilities = replace(FakePagedRunner.capabilities, mixed_batches=False)

    def run(self, plan):
        assert plan.kind != "mixed"
        assert len({row.length == 1 and row.start > 0 and row.wants_token for row in plan.rows}) == 1
        return super().run(plan)


class Loop:
    """A small engine: schedules, runs, reports, and checks every invariant after each step."""

    def __init__(
        self, runner_type=FakePagedRunner, *, num_blocks=32, prefill_tokens=16, batch_size=4, depth=None, start_ids=()
    ):
        capabilities = runner_type.capabilities
        block_size = capabilities.block_sizes[0] or 64
        if not capabilities.block_sizes[0]:
            num_blocks = capabilities.max_sequences
        limits = Limits(
            max_input_tokens=40,
            max_total_tokens=min(64, num_blocks * block_size - (block_size + len(start_ids) if start_ids else 0)),
            max_batch_prefill_tokens=prefill_tokens,
            max_batch_size=batch_size,
            vocab_size=VOCABULARY,
        )
        kv = KVCacheManager(num_blocks, block_size, prefix_caching=capabilities.prefix_caching and not start_ids)
        self.scheduler = Scheduler(limits, capabilities, kv, FinishRule(), start_ids)
        self.runner = runner_type(num_blocks, block_size, batch_size)
        self.depth = depth or (2 if capabilities.asynchronous else 1)
        self.in_flight = deque()
        self.outputs: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self.steps = 0

    def add(self, request_id, prompt, new_tokens=5, **kwargs):
        params = SamplingParams(max_new_tokens=new_tokens)
        self.scheduler.add(Request(id=request_id, prompt_ids=prompt, params=params, **kwargs), seed=0)
        self.outputs[request_id] = []

    def step(self):
        plan = self.scheduler.schedule()
        if plan:
            self.in_flight.append((plan, self.runner.submit(plan)))
        while self.in_flight and (not plan or len(self.in_flight) >= self.depth):
            done, handle = self.in_flight.popleft()
            self.collect(self.scheduler.report(done, handle.result()))
            if plan is None:
                break
        self.check()
        self.steps += 1
        return plan

    def collect(self, outputs):
        for output in outputs:
            self.outputs[output.request_id] += output.token_ids
            if output.finish_reason:
                assert output.request_id not in self.reasons, "a request ended twice"
                self.reasons[output.request_id] = output.finish_reason

    def check(self):
        kv, running = self.scheduler.kv, self.scheduler.running
        kv.pool.check()
        assert kv.open_sequences() == running.keys()
        slots = [sequence.slot for sequence in running.values()]
        assert len(set(slots)) == len(slots)
        assert len(slots) + len(self.scheduler._free_slots) == self.scheduler.limits.max_batch_size
        for sequence in running.values():
            held = kv.blocks_for(len(sequence.source)) + kv.blocks_for(sequence.computed)
            assert len(kv.table(sequence.id)) == held
            assert sequence.room == held * kv.block_size
        assert self.scheduler.batch_max_tokens == sum(sequence.max_len for sequence in running.values())
        reading = {number for number, sequence in running.items() if not sequence.computed or sequence.uncomputed > 1}
        assert self.scheduler.reading == reading

    def drain(self, most_steps=2000):
        while self.scheduler.has_work or self.in_flight:
            assert self.steps < most_steps, "the scheduler does not finish"
            self.step()
        assert self.scheduler.kv.pool.counts().held == 0


@pytest.mark.parametrize("runner_type", RUNNERS)
def test_every_device_generates_the_expected_tokens(runner_type):
    loop = Loop(runner_type)
    prompts = {i: [(i * 37 + j) % VOCABULARY for j in range(1 + 5 * i)] for i in range(8)}
    for request_id, prompt in prompts.items():
        loop.add(request_id, prompt, new_tokens=3 + request_id)
    loop.drain()
    for request_id, prompt in prompts.items():
        assert loop.outputs[request_id] == expected_output(prompt, 3 + request_id)
    assert set(loop.reasons.values()) == {"length"}


KINDS = [pytest.param(runner_type, (), id=runner_type.__name__) for runner_type in (*RUNNERS, OnePhaseRunner)] + [
    pytest.param(runner_type, start_ids, id=f"{runner_type.__name__}, {len(start_ids)} start tokens")
    for runner_type in RUNNERS[:2]
    for start_ids in ((0,), (7, 8, 9, 10, 11))
]


@pytest.mark.parametrize(("runner_type", "start_ids"), KINDS)
@pytest.mark.parametrize("seed", range(25))
def test_random_arrivals_cancels_and_reuse(runner_type, start_ids, seed):
    rng = random.Random(seed)
    loop = Loop(
        runner_type,
        num_blocks=rng.choice([16, 20, 40]),
        prefill_tokens=rng.choice([1, 5, 16, 64]),
        batch_size=4,
        start_ids=start_ids,
    )
    prompts: dict[int, list[int]] = {}
    lengths: dict[int, int] = {}
    aborted = set()
    for request_id in range(60):
        stem = [rng.choice([1, 2])] * rng.choice([0, 4, 8, 13])
        prompts[request_id] = stem + [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 20))]
        lengths[request_id] = rng.randint(1, 20)
        loop.add(request_id, prompts[request_id], lengths[request_id], priority=rng.choice([-1, 0, 0, 1]))
        for _ in range(rng.randint(0, 4)):
            loop.step()
        if rng.random() < 0.3:
            victim = rng.randrange(request_id + 5)  # may be unknown or finished
            if loop.scheduler.abort(victim):
                aborted.add(victim)
            loop.check()
    loop.drain()
    for request_id, prompt in prompts.items():
        expected = (
            expected_output(list(start_ids), lengths[request_id], source=prompt)
            if start_ids
            else expected_output(prompt, lengths[request_id])
        )
        if request_id in aborted:
            assert loop.outputs[request_id] == expected[: len(loop.outputs[request_id])]
            assert request_id not in loop.reasons
        else:
            assert loop.outputs[request_id] == expected


def test_an_encoder_reads_its_source_at_once_beside_decodes_and_the_decoder_its_start_tokens():
    loop = Loop(prefill_tokens=8, start_ids=(0,))
    loop.add(1, [1, 2, 3], new_tokens=20)
    loop.step()
    loop.add(2, list(range(30)))
    loop.add(3, [4])
    plan = loop.step()
    assert plan.kind == "mixed"
    (admission,) = plan.admissions  # the third waits: the budget is spent
    assert (admission.source, admission.tokens, admission.prompt_len) == (tuple(range(30)), (0,), 1)
    assert len(admission.source_blocks) == 8
    assert [(row.start, row.length, len(row.new_blocks)) for row in plan.rows] == [(1, 1, 0), (0, 1, 1)]
    assert loop.scheduler.take_counts().prefill_tokens == 3 + 1 + 30 + 1
    loop.drain()
    assert loop.outputs[2] == expected_output([0], 5, source=list(range(30)))


@pytest.mark.parametrize("runner_type", RUNNERS[:2])
def test_a_preempted_encoder_decoder_is_encoded_again(runner_type):
    loop = Loop(runner_type, num_blocks=16, prefill_tokens=64, start_ids=(0,))
    for request_id in range(4):
        loop.add(request_id, [request_id] * 10, new_tokens=30)
    again = 0
    while loop.scheduler.has_work or loop.in_flight:
        plan = loop.step()
        again += (
            sum(len(admission.tokens) > 1 and len(admission.source) == 10 for admission in plan.admissions)
            if plan
            else 0
        )
    assert again > 0
    for request_id in range(4):
        assert loop.outputs[request_id] == expected_output([0], 30, source=[request_id] * 10)


def test_a_long_source_is_not_starved_by_decodes():
    """With decodes in every step the budget never suffices for it."""
    loop = Loop(prefill_tokens=30, start_ids=(0,), batch_size=2)
    loop.add(0, [1], new_tokens=60)
    loop.step()
    loop.add(1, [2] * 30, new_tokens=1)
    loop.step()
    assert loop.reasons == {1: "length"}


def test_encoder_decoders_and_the_prefix_cache_exclude_one_another():
    loop = Loop()
    with pytest.raises(ValueError, match="prefix cache"):
        Scheduler(loop.scheduler.limits, FakePagedRunner.capabilities, loop.scheduler.kv, FinishRule(), (0,))


def test_more_output_than_a_decoder_has_positions_for_is_refused():
    loop = Loop(start_ids=(0,))
    loop.scheduler.limits = replace(loop.scheduler.limits, max_output_tokens=12)
    loop.add(1, [1] * 40, new_tokens=12)
    with pytest.raises(InvalidRequest, match=r"`max_new_tokens` must be <= 12\. Given: 13"):
        loop.add(2, [1], new_tokens=13)


def test_static_device_sees_two_shapes_only():
    loop = Loop(FakeStaticRunner)
    for request_id in range(10):
        loop.add(request_id, [request_id] * (request_id + 1), new_tokens=1 + request_id % 4)
    loop.drain()
    assert loop.runner.shapes == {("prefill", 1), ("decode", 4)}


def test_the_next_step_is_submitted_before_the_last_one_ran():
    loop = Loop(FakeAsynchronousRunner)
    loop.add(1, [1, 2, 3], new_tokens=8)
    loop.drain()
    assert loop.runner.most_submitted == 2
    assert loop.outputs[1] == expected_output([1, 2, 3], 8)


def test_a_decode_row_may_refer_to_a_token_still_on_the_device():
    loop = Loop(FakeAsynchronousRunner)
    loop.add(1, [1, 2, 3], new_tokens=8)
    assert loop.step().rows[0].tokens == (1, 2, 3)
    assert loop.step().rows[0].tokens is None


def test_a_stop_seen_one_step_late_drops_the_surplus_token():
    stop = expected_output([1, 2, 3], 3)[2]
    loop = Loop(FakeAsynchronousRunner)
    loop.scheduler.finish = FinishRule(frozenset({stop}))
    loop.add(1, [1, 2, 3], new_tokens=8)
    loop.drain()
    assert loop.outputs[1] == expected_output([1, 2, 3], 3)
    assert loop.reasons == {1: "eos_token"}


def test_a_preempted_sequence_keeps_its_prompt_and_output():
    loop = Loop(num_blocks=16, prefill_tokens=64)
    for request_id in range(4):
        loop.add(request_id, [request_id] * 12, new_tokens=30)
    preemptions = 0
    while loop.scheduler.has_work:
        loop.step()
        preemptions += loop.scheduler.take_counts().preemptions
    assert preemptions > 0
    for request_id in range(4):
        assert loop.outputs[request_id] == expected_output([request_id] * 12, 30)


def test_few_preemptions_under_memory_pressure():
    loop = Loop(num_blocks=16, prefill_tokens=64)
    worst: dict[int, int] = {}
    for request_id in range(60):
        loop.add(request_id, [request_id] * 10, new_tokens=40)
    while loop.scheduler.has_work:
        loop.step()
        for sequence in loop.scheduler.running.values():
            worst[sequence.id] = sequence.preemptions
    assert max(worst.values()) <= 4
    assert loop.reasons == dict.fromkeys(range(60), "length")


def test_a_repeated_prompt_is_answered_from_the_prefix_cache():
    loop = Loop(prefill_tokens=64)
    prompt = list(range(33))
    loop.add(1, prompt)
    loop.drain()
    loop.scheduler.take_counts()
    loop.add(2, prompt)
    plan = loop.step()
    assert plan.rows[0].start == 32
    assert loop.scheduler.take_counts().prefix_hits == 32
    loop.drain()
    assert loop.outputs[2] == loop.outputs[1]


def test_long_prompts_are_chunked_beside_decodes():
    loop = Loop(prefill_tokens=8)
    loop.add(1, [1, 2, 3], new_tokens=20)
    loop.step()
    loop.add(2, list(range(30)))
    plan = loop.step()
    assert plan.kind == "mixed"
    assert [row.length for row in plan.rows] == [1, 7]
    loop.drain()
    assert loop.outputs[2] == expected_output(list(range(30)), 5)


def test_priorities_overtake_but_starve_nobody():
    loop = Loop(batch_size=1, prefill_tokens=64)
    loop.add(0, [7], new_tokens=2)
    for request_id in range(1, 1500):
        loop.add(request_id, [8], new_tokens=1, priority=-1)
    while loop.scheduler.has_work:
        loop.step()
        if 0 in loop.reasons:
            break
    assert 1000 < len(loop.reasons) < 1100


def test_abort_of_unknown_and_finished_ids_is_ignored():
    loop = Loop()
    assert loop.scheduler.abort(99) is False
    loop.add(1, [1])
    loop.drain()
    assert loop.scheduler.abort(1) is False


def test_one_failing_row_ends_only_its_own_request():
    loop = Loop(prefill_tokens=64)
    loop.add(1, [1, 2, 3])
    loop.add(2, [4, 5, 6])
    plan = loop.scheduler.schedule()
    result = loop.runner.run(plan)
    result.rows[0] = RowResult(1, error="NaN in the logits")
    loop.collect(loop.scheduler.report(plan, result))
    loop.check()
    loop.drain()
    assert loop.reasons == {1: "error", 2: "length"}
    assert loop.outputs[2] == expected_output([4, 5, 6], 5)


def test_a_failing_step_ends_its_requests_and_leaves_the_waiting_ones():
    loop = Loop(batch_size=1)
    loop.add(1, list(range(9)))
    loop.add(2, list(range(9)))
    plan = loop.scheduler.schedule()
    loop.collect(loop.scheduler.fail(plan, "the device is gone"))
    assert loop.reasons == {1: "error"}
    loop.drain()
    assert loop.outputs[2] == expected_output(list(range(9)), 5)


def test_prompt_logprobs_are_joined_over_chunks_and_skip_the_prefix_cache():
    loop = Loop(prefill_tokens=4)
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=True)
    outputs = []
    for request_id in (1, 2):
        loop.scheduler.add(Request(id=request_id, prompt_ids=list(range(10)), params=params), seed=0)
        while loop.scheduler.has_work:
            plan = loop.scheduler.schedule()
            rows = [
                RowResult(
                    row.sequence_id,
                    5 if row.wants_token else None,
                    prompt_logprobs=[float(p) for p in range(row.start + 1, min(row.start + row.length, 9) + 1)],
                )
                for row in plan.rows
            ]
            outputs += loop.scheduler.report(plan, StepResult(rows))
    for output in outputs:
        assert output.prompt_logprobs == [None, *(float(p) for p in range(1, 10))]
        assert output.cached_tokens == 0


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "message"),
    [
        ([], 1, "cannot be empty"),
        ([1], 0, "strictly positive"),
        ([1] * 41, 1, "less than 40 tokens. Given: 41"),
        ([1] * 40, 25, "must be <= 64. Given: 40 `inputs` tokens and 25"),
        ([VOCABULARY], 1, "token id 1000 is not in the vocabulary"),
        ([-1], 1, "token id -1 is not in the vocabulary"),
    ],
)
def test_what_can_never_run_is_refused(prompt, new_tokens, message):
    with pytest.raises(InvalidRequest, match=message):
        Loop().add(1, prompt, new_tokens)


def test_a_cached_prompt_but_for_its_last_token_joins_no_decodes_where_steps_are_not_mixed():
    loop = Loop(OnePhaseRunner)
    block = loop.scheduler.kv.block_size
    prompt = list(range(2 * block + 1))
    loop.add(1, prompt, new_tokens=2)
    loop.drain()
    loop.add(2, prompt)
    loop.add(3, list(range(100, 103)))
    loop.drain()
    assert loop.outputs[2] == expected_output(prompt, 5)
    assert loop.scheduler.take_counts().prefix_hits == block


def test_prompts_that_hold_up_as_many_decodes_as_wait_take_fewer_tokens():
    class Careful(FakePagedRunner):
        capabilities = replace(FakePagedRunner.capabilities, mixed_tokens=8)

    def prompt_tokens(plan):
        return sum(row.length for row in plan.rows if row.length > 1)

    loop = Loop(Careful, num_blocks=64, prefill_tokens=32)
    loop.add(1, list(range(5, 30)), new_tokens=20)
    assert prompt_tokens(loop.step()) == 25  # nobody is held up
    loop.add(2, list(range(5, 40)))
    assert prompt_tokens(loop.step()) == 8  # beside a decode, one waits
    loop.add(3, list(range(30, 60)))
    assert prompt_tokens(loop.step()) == 31  # two wait
    loop.add(4, list(range(60, 90)))
    while loop.scheduler.has_work:
        loop.step()
    assert all(loop.outputs[number] for number in (1, 2, 3, 4))


@pytest.mark.parametrize(("measured", "beside"), [(5, 5), (8, 8), (20, 20), (100, 30)])
def test_prompts_beside_decodes_take_what_was_measured_whatever_the_decodes_add(measured, beside):
    class Careful(FakePagedRunner):
        capabilities = replace(FakePagedRunner.capabilities, mixed_tokens=8)

    loop = Loop(Careful, num_blocks=64, prefill_tokens=32)
    loop.scheduler.mixed_tokens = measured
    for number in (1, 2):
        loop.add(number, [number] * 5, new_tokens=20)
    loop.step()
    loop.add(3, list(range(5, 45)))
    assert [row.length for row in loop.step().rows] == [1, 1, beside]
    loop.drain()


def test_steps_that_are_read_in_a_moment_are_filled():
    class Careful(FakePagedRunner):
        capabilities = replace(FakePagedRunner.capabilities, mixed_tokens=8)

    loop = Loop(Careful, num_blocks=64, prefill_tokens=32)
    loop.scheduler.mixed_tokens = 24
    for number in range(1, 5):
        loop.add(number, list(range(number, number + 10)), new_tokens=3)
    assert [row.length for row in loop.step().rows] == [10, 10, 10]
    loop.drain()


def test_first_tokens_do_not_wait_for_many_other_prompts():
    class Careful(FakePagedRunner):
        capabilities = replace(FakePagedRunner.capabilities, mixed_tokens=8)

    loop = Loop(Careful, num_blocks=64, prefill_tokens=32)
    for number, length in enumerate((10, 10, 10, 31, 10), 1):
        loop.add(number, list(range(5 + number, 5 + number + length)), new_tokens=20)
    assert [row.length for row in loop.step().rows] == [10, 10]  # more than half is full
    assert [row.length for row in loop.step().rows if row.length > 1] == [10, 20]  # a long one takes what is left
    while loop.scheduler.has_work:
        loop.step()
    assert all(loop.outputs[number] for number in range(1, 6))


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_steps_of_few_tokens_take_prompts_too(tokens):
    class Careful(FakePagedRunner):
        capabilities = replace(FakePagedRunner.capabilities, mixed_tokens=8)

    loop = Loop(Careful, num_blocks=64, prefill_tokens=tokens)
    for number in (1, 2):
        loop.add(number, list(range(5 + number, 25 + number)), new_tokens=3)
    for _ in range(60):
        loop.step()
    assert [len(loop.outputs[number]) for number in (1, 2)] == [3, 3]


def test_wishes_of_fewer_tokens_hold_beside_decodes_too():
    class Careful(FakePagedRunner):
        capabilities = replace(FakePagedRunner.capabilities, mixed_tokens=24)

    loop = Loop(Careful, num_blocks=64, prefill_tokens=16)
    loop.add(1, list(range(5, 15)), new_tokens=20)
    loop.step()
    loop.add(2, list(range(5, 40)))
    assert sum(row.length for row in loop.step().rows) == 16
