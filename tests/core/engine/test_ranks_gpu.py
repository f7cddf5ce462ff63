"""A model divided over two GPUs, its steps recorded, against one GPU."""

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs that PyTorch sees"),
    pytest.mark.timeout(600),  # each compiles the kernels of two engines, on three processes
]

STEPS = 32
PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 5, 33, 90))]
FAMILIES = {
    "llama": {},
    "llama, a key and value head for both": {"num_key_value_heads": 1},
    "gpt_neox": {},
    "falcon": {},
    "mixtral": {},
    "gpt2": {},
    "qwen2_moe": {},
}
SAMPLED = {"do_sample": True, "seed": 1, "top_p": 0.9, "repetition_penalty": 1.2}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("divided"), request.param.partition(",")[0], **FAMILIES[request.param]
    )


def run(folder, ranks, dtype, prompts=PROMPTS, **params):
    """(tokens, log-probabilities) of each request; every second one joins while others run."""
    engine = Engine(EngineConfig(model_id=str(folder), device="cuda", dtype=dtype, num_shard=ranks))
    try:
        found = [([], []) for _ in prompts]
        for first in (0, 1):
            for number in range(first, len(prompts), 2):
                wishes = SamplingParams(max_new_tokens=STEPS + number, ignore_eos=True, **params)
                engine.add(Request(id=number, prompt_ids=prompts[number], params=wishes))
            for _ in range(8):
                collect(engine, found)
        runner = engine.runner.own if ranks > 1 else engine.runner
        met = set(runner._met)
        while met - runner._recorded.keys():  # on both; others, which requests may ever want, would come then
            engine.prepare()
        while engine.has_work:
            collect(engine, found)
        assert any(recorded is not None for recorded in runner._recorded.values())
        return found
    finally:
        engine.close()


def collect(engine, found):
    for output in engine.step():
        assert not output.error
        tokens, logprobs = found[output.request_id]
        tokens += output.token_ids
        logprobs += output.logprobs


@pytest.mark.parametrize("params", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_two_gpus_continue_as_one_does_in_float32(checkpoint, params):
    one, two = (run(checkpoint, ranks, "float32", **params) for ranks in (1, 2))
    assert [tokens for tokens, _ in two] == [tokens for tokens, _ in one]
    for (_, left), (_, right) in zip(one, two, strict=True):
        torch.testing.assert_close(torch.tensor(left), torch.tensor(right), rtol=1e-3, atol=1e-3)


def test_two_gpus_are_as_good_as_one_in_bfloat16(checkpoint):
    """Sums are rounded elsewhere, and experts chosen otherwise now and then: up to the first tokens that differ, which
    were as likely, probabilities are close, most of them."""
    one, two = (run(checkpoint, ranks, "bfloat16") for ranks in (1, 2))
    differences = []
    for (expected, left), (tokens, right) in zip(one, two, strict=True):
        assert len(tokens) == len(expected)
        differ = (i for i, pair in enumerate(zip(tokens, expected, strict=True), 1) if len(set(pair)) > 1)
        end = next(differ, len(tokens))
        differences += [abs(a - b) for a, b in zip(left[:end], right[:end], strict=True)]
    assert max(differences) < 2  # 0.7 where an expert was chosen otherwise
    assert sum(differences) / len(differences) < 0.1  # 0.01 to 0.04 of logarithms around -2


def test_engines_can_follow_one_another(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    first, second = (run(folder, 2, "float32") for _ in range(2))
    assert first == second
