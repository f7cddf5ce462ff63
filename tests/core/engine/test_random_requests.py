"""Random requests, aborts and parameters through a real engine: nobody is harmed, lost, leaked or told twice."""

import random

import pytest

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY

CANARY = [3, 1, 4, 1, 5, 9, 2, 6]
CHOICES = {
    "do_sample": [True, True, False],
    "temperature": [1.0, 1.0, 1e-45, 0.3, 1e30],
    "top_k": [0, 1, 5, VOCABULARY + 1, 2**32 - 1],
    "top_p": [1.0, 1e-9, 0.5, 0.999],
    "min_p": [0.0, 0.1, 0.999],
    "typical_p": [1.0, 1e-9, 0.5],
    "repetition_penalty": [1.0, 1e-30, 1.3, 1e30],
    "frequency_penalty": [0.0, -2.0, 2.0],
    "presence_penalty": [0.0, -2.0, 2.0],
    "logit_bias": [{}, {5: 100.0, 6: -100.0}, dict.fromkeys(range(VOCABULARY), -100.0)],
    "watermark": [False, False, True],
    "seed": [None, 0, 12345, 2**64 - 1],
    "max_new_tokens": [1, 2, 5, 17],
    "min_new_tokens": [0, 0, 3, 50],
    "stop_token_ids": [(), (5,), (5, 6, 7)],
    "ignore_eos": [True, False],
    "top_n_tokens": [0, 1, 5, 2 * VOCABULARY],
    "prompt_logprobs": [False, False, True],
}


class Crowd:
    """Adds random requests to an engine and checks everything after each step."""

    def __init__(self, engine, rng):
        self.engine, self.rng = engine, rng
        self.running, self.tokens = {}, {}

    def add(self, number):
        if self.rng.random() < 0.2:
            prompt, params = CANARY, SamplingParams(max_new_tokens=12, ignore_eos=True)
        else:
            length = self.rng.choice([1, 2, 31, 32, 33, 100])
            prompt = [self.rng.randrange(VOCABULARY) for _ in range(length)]
            params = SamplingParams(**{name: self.rng.choice(values) for name, values in CHOICES.items()})
        request = Request(id=number, prompt_ids=prompt, params=params, priority=self.rng.choice([0, 0, -3, 5]))
        self.running[number], self.tokens[number] = request, []
        self.engine.add(request)

    def abort(self):
        victim = self.rng.choice(list(self.running))
        del self.running[victim]
        assert self.engine.abort(victim)

    def step(self, canary):
        for output in self.engine.step():
            request = self.running[output.request_id]  # neither aborted nor ended before
            assert not output.error
            assert len(output.token_ids) == len(output.logprobs)
            tokens = self.tokens[output.request_id]
            tokens += output.token_ids
            if output.finish_reason:
                del self.running[output.request_id]
                assert len(tokens) >= min(request.params.min_new_tokens, request.params.max_new_tokens)
                assert request.prompt_ids != CANARY or tokens == canary
        pool = self.engine.scheduler.kv.pool
        pool.check()
        assert sum(pool.counts()) == pool.size


@pytest.mark.parametrize("seed", range(3))
def test_every_request_ends_once_and_a_canary_never_changes(checkpoint, seed):
    rng = random.Random(seed)
    engine = Engine(
        EngineConfig(
            model_id=str(checkpoint),
            device="cpu",
            dtype="float32",
            max_batch_size=6,
            max_total_tokens=128,
            max_batch_total_tokens=rng.choice([128, 256, 1024]),
            max_batch_prefill_tokens=rng.choice([5, 33, 256]),
        )
    )
    canary = engine.generate([CANARY], SamplingParams(max_new_tokens=12, ignore_eos=True))[0].token_ids
    crowd = Crowd(engine, rng)
    for number in range(80):
        crowd.add(number)
        if rng.random() < 0.1:
            crowd.abort()
        for _ in range(rng.randrange(3)):
            crowd.step(canary)
    while engine.has_work:
        crowd.step(canary)
    assert not crowd.running
    assert engine.scheduler.kv.pool.counts().held == 0
