"""Whole models on the device: transformers' greedy tokens, whoever else is in the batch."""

import pytest

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import UnsupportedModel
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.expected import FAMILIES, PROMPTS, TOKENS

GREEDY = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True)


@pytest.fixture
def open_engine(vendor):
    """An engine on the device, or a skip with the reason for which it refuses the model."""
    opened = []

    def start(folder, **wishes):
        exact = {"dtype": "float32"} if "float32" in vendor.dtypes else {}
        try:
            opened.append(Engine(EngineConfig(model_id=str(folder), device=vendor.probe.kind, **exact, **wishes)))
        except UnsupportedModel as error:
            pytest.skip(f"refused: {error}")
        return opened[-1]

    yield start
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(vendor, checkpoints, open_engine, family):
    if "float32" not in vendor.dtypes:
        pytest.skip("the device has no float32, in which tokens can be compared one by one")
    found = open_engine(checkpoints.folder / family).generate(PROMPTS, GREEDY)
    assert [completion.token_ids for completion in found] == checkpoints.tokens[family]


def test_requests_that_join_and_leave_change_nobody(checkpoints, open_engine):
    engine = open_engine(checkpoints.folder / "llama")
    alone = {i: engine.generate([prompt], GREEDY)[0].token_ids for i, prompt in enumerate(PROMPTS)}
    waiting = [(100 + i, i % len(PROMPTS)) for i in range(12)]
    which, found = dict(waiting), {number: [] for number, _ in waiting}
    while waiting or engine.has_work:
        if waiting:
            number, prompt = waiting.pop(0)
            engine.add(Request(id=number, prompt_ids=PROMPTS[prompt], params=GREEDY))
        for output in engine.step():
            assert not output.error
            found[output.request_id] += output.token_ids
    assert found == {number: alone[prompt] for number, prompt in which.items()}


def test_a_seed_gives_the_same_tokens_in_any_batch(checkpoints, open_engine):
    engine = open_engine(checkpoints.folder / "llama")
    sampled = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, do_sample=True, temperature=0.9, seed=7)
    alone = engine.generate(PROMPTS[:1], sampled)[0].token_ids
    assert engine.generate(PROMPTS[:1] * 3, sampled)[2].token_ids == alone
    assert engine.generate(PROMPTS[:1], SamplingParams(**{**_fields(sampled), "seed": 8}))[0].token_ids != alone


def _fields(params):
    return {name: getattr(params, name) for name in params.__struct_fields__}


def test_an_abort_frees_what_it_held(checkpoints, open_engine):
    engine = open_engine(checkpoints.folder / "llama")
    free = engine.scheduler.kv.pool.counts().held
    engine.add(Request(id=1, prompt_ids=PROMPTS[1], params=GREEDY))
    engine.step()
    assert engine.abort(1)
    while engine.has_work:
        engine.step()
    assert engine.scheduler.kv.pool.counts().held == free
    assert engine.generate(PROMPTS[1:2], GREEDY)[0].token_ids


def test_info_says_what_runs(vendor, checkpoints, open_engine):
    info = open_engine(checkpoints.folder / "llama").info
    assert info.device == vendor.probe.kind
    assert info.max_batch_total_tokens > 0
