"""The scheduler with the device's own capabilities, over a device without arithmetic that checks every plan."""

import random

import pytest

from tgi_core.kvcache.manager import KVCacheManager
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.scheduler.finish import FinishRule
from tgi_core.scheduler.limits import Limits
from tgi_core.scheduler.scheduler import Scheduler
from tgi_core.testing.fake_device import VOCABULARY, FakePagedRunner, expected_output

MOST_TOKENS = 96


class Checked(FakePagedRunner):
    """Refuses plans that the device did not say it can run."""

    def __init__(self, capabilities, *size):
        super().__init__(*size)
        self.declared = capabilities
        self.live = set()  # slots that decode

    def run(self, plan):
        capabilities = self.declared
        prefills = [row for row in plan.rows if row.start == 0 or row.length > 1 or not row.wants_token]
        decodes = [row for row in plan.rows if row not in prefills]
        assert len({row.slot for row in plan.rows}) == len(plan.rows)
        if not capabilities.mixed_batches:
            assert not (prefills and decodes), "prompts and decodes in one step"
        if not capabilities.chunked_prefill:
            assert all(row.start == 0 and row.wants_token for row in prefills), "a part of a prompt"
        if capabilities.prefill_rows is not None:
            assert len(prefills) <= capabilities.prefill_rows
        if capabilities.max_sequences is not None:
            assert len(plan.rows) <= capabilities.max_sequences
        if capabilities.max_prompt_len is not None:
            assert all(row.start + row.length <= capabilities.max_prompt_len for row in prefills)
        if decodes and capabilities.decode_all_live:
            assert {row.slot for row in decodes} >= self.live, "a live slot is left out of a decode"
        return super().run(plan)


def build(vendor, blocks, sequences):
    capabilities = vendor.capabilities
    block = capabilities.block_sizes[0] or MOST_TOKENS
    blocks = blocks if capabilities.block_sizes[0] else sequences
    longest = min(MOST_TOKENS, blocks * block, capabilities.max_len or MOST_TOKENS)
    limits = Limits(
        max_input_tokens=min(longest - 1, capabilities.max_prompt_len or longest),
        max_total_tokens=longest,
        max_batch_prefill_tokens=max(64, longest),
        max_batch_size=sequences,
        vocab_size=VOCABULARY,
        max_output_tokens=longest,
    )
    manager = KVCacheManager(blocks, block, prefix_caching=capabilities.prefix_caching)
    runner = Checked(capabilities, blocks, block, sequences)
    return Scheduler(limits, capabilities, manager, FinishRule()), runner


@pytest.mark.parametrize("seed", range(6))
def test_every_request_ends_with_its_own_tokens(vendor, seed):
    rng = random.Random(seed)
    sequences = min(4, vendor.capabilities.max_sequences or 4)
    scheduler, runner = build(vendor, rng.choice([8, 12, 40]), sequences)
    expected, found, aborted = {}, {}, set()
    for number in range(1, 25):
        output = rng.randint(1, 12)
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, scheduler.limits.max_total_tokens - output))]
        prompt = prompt[: scheduler.limits.max_input_tokens]
        params = SamplingParams(max_new_tokens=output, ignore_eos=True)
        scheduler.add(Request(id=number, prompt_ids=prompt, params=params), seed=0)
        expected[number], found[number] = expected_output(prompt, output), []
        for _ in range(rng.randint(0, 3)):
            advance(scheduler, runner, found)
        if rng.random() < 0.1:
            aborted.add(number)
            scheduler.abort(number)
    steps = 0
    while scheduler.has_work:
        advance(scheduler, runner, found)
        steps += 1
        assert steps < 5000, "requests starve"
    for number, tokens in found.items():
        assert tokens == expected[number] if number not in aborted else tokens == expected[number][: len(tokens)]
    pool = scheduler.kv.pool
    pool.check()
    assert pool.counts().held == 0


def advance(scheduler, runner, found):
    decoding = (s for s in scheduler.running.values() if s.id not in scheduler.reading)
    runner.live = {s.slot for s in decoding if s.wants_step}
    plan = scheduler.schedule()
    if plan is not None:
        for output in scheduler.report(plan, runner.submit(plan).result()):
            found[output.request_id] += output.token_ids
