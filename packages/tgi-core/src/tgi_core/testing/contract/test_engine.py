"""Whole models on the device: transformers' greedy tokens, whoever else is in the batch."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import UnsupportedModel
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

FAMILIES = ("llama", "mistral", "gpt_neox", "bloom", "opt", "falcon", "phi", "mpt", "gpt_bigcode", "mixtral", "qwen2")
TOKENS = 12
PROMPTS = [[(7 * i + j * j) % (VOCABULARY - 5) + 5 for j in range(length)] for i, length in enumerate((3, 21, 40, 1))]
GREEDY = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """family -> a tiny checkpoint, written once."""
    made = {}

    def find(family):
        if family not in made:
            made[family] = make_checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


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


def transformers_tokens(folder, prompt, tokens=TOKENS):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(vendor, folders, open_engine, family):
    if "float32" not in vendor.dtypes:
        pytest.skip("the device has no float32, in which tokens can be compared one by one")
    folder = folders(family)
    found = open_engine(folder).generate(PROMPTS, GREEDY)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert completion.token_ids == transformers_tokens(folder, prompt)


def test_requests_that_join_and_leave_change_nobody(folders, open_engine):
    engine = open_engine(folders("llama"))
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


def test_a_seed_gives_the_same_tokens_in_any_batch(folders, open_engine):
    engine = open_engine(folders("llama"))
    sampled = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, do_sample=True, temperature=0.9, seed=7)
    alone = engine.generate(PROMPTS[:1], sampled)[0].token_ids
    assert engine.generate(PROMPTS[:1] * 3, sampled)[2].token_ids == alone
    assert engine.generate(PROMPTS[:1], SamplingParams(**{**_fields(sampled), "seed": 8}))[0].token_ids != alone


def _fields(params):
    return {name: getattr(params, name) for name in params.__struct_fields__}


def test_an_abort_frees_what_it_held(folders, open_engine):
    engine = open_engine(folders("llama"))
    free = engine.scheduler.kv.pool.counts().held
    engine.add(Request(id=1, prompt_ids=PROMPTS[1], params=GREEDY))
    engine.step()
    assert engine.abort(1)
    while engine.has_work:
        engine.step()
    assert engine.scheduler.kv.pool.counts().held == free
    assert engine.generate(PROMPTS[1:2], GREEDY)[0].token_ids


def test_info_says_what_runs(vendor, folders, open_engine):
    info = open_engine(folders("llama")).info
    assert info.device == vendor.probe.kind
    assert info.max_batch_total_tokens > 0
