"""Every family on a GPU against the CPU."""

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.request import Request
from tgi_core.runner.recorded import RecordedDecode, RecordedSources
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
    # what transformers 5.17 does on importing its GPTBigCode
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]

STEPS = 32
PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 5, 33, 90))]
SETTINGS = {
    "whole prompts": {},
    "chunked": {"max_batch_prefill_tokens": 7},
    "reference kernels": {"disable_custom_kernels": True},
    "preempted and resumed": {"max_total_tokens": 160, "max_batch_total_tokens": 224, "prefix_caching": False},
}


@pytest.fixture(scope="module")
def expected(folder):
    """Greedy tokens of each prompt, by the reference on the CPU, which other tests compare with transformers."""
    return run(folder, device="cpu", disable_custom_kernels=True)


def run(folder, device="cuda", dtype="float32", params=None, prompts=PROMPTS, **settings):
    engine = Engine(EngineConfig(model_id=str(folder), device=device, dtype=dtype, **settings))
    params = params or SamplingParams(max_new_tokens=STEPS, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        engine.add(Request(id=number, prompt_ids=prompt, params=params))
    found = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step():
            assert not output.error
            found[output.request_id] += output.token_ids
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_tokens(folder, expected, name):
    assert run(folder, **SETTINGS[name]) == expected


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
def test_encoder_decoders_are_as_on_the_cpu(tmp_path, family):
    folder = make_checkpoint(tmp_path, family)
    assert run(folder) == run(folder, device="cpu", disable_custom_kernels=True)


def test_sources_that_come_beside_decodes_are_read_by_recordings(tmp_path):
    folder = make_checkpoint(tmp_path, "t5")
    engines = [
        Engine(EngineConfig(model_id=str(folder), dtype="float32", device=device, disable_custom_kernels=plain))
        for device, plain in (("cuda", False), ("cpu", True))
    ]
    while engines[0].prepare():
        pass
    assert {type(recording) for recording in engines[0].runner._recorded.values()} == {RecordedDecode, RecordedSources}
    found, expected = ({number: [] for number in range(12)} for _ in engines)
    for engine, tokens in zip(engines, (found, expected), strict=True):
        waiting = list(tokens)
        while waiting or engine.has_work:
            for number in waiting[:2]:  # at a time, of one to 100 tokens
                params = SamplingParams(max_new_tokens=STEPS, ignore_eos=True)
                prompt = [(7 * number + j * j) % VOCABULARY for j in range(1 + 9 * number)]
                engine.add(Request(id=number, prompt_ids=prompt, params=params))
            del waiting[:2]
            for output in engine.step():
                assert not output.error
                tokens[output.request_id] += output.token_ids
    assert found == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_with_sampling_and_penalties(tmp_path, dtype):
    params = SamplingParams(
        max_new_tokens=STEPS, ignore_eos=True, do_sample=True, seed=1, temperature=0.8, top_p=0.9, top_k=50,
        repetition_penalty=1.2, top_n_tokens=2,
    )  # fmt: skip
    folder = make_checkpoint(tmp_path, "llama")
    first, again = (run(folder, dtype=dtype, params=params) for _ in range(2))
    assert first == again
    assert all(len(tokens) == STEPS for tokens in first)


def test_many_requests_sample_from_a_vocabulary_of_real_size(tmp_path):
    """A row of logits has many parts, and steps follow each other at once, as in no test of these kernels alone."""
    folder = make_checkpoint(tmp_path, "llama", vocab_size=50_000)
    params = SamplingParams(
        max_new_tokens=STEPS, ignore_eos=True, do_sample=True, seed=1, temperature=0.8, top_p=0.9, top_k=20_000
    )
    first, again = (run(folder, dtype="bfloat16", params=params, prompts=PROMPTS * 4) for _ in range(2))
    assert first == again
    assert all(len(tokens) == STEPS for tokens in first)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_the_host_waits_for_no_step_to_begin_the_next(tmp_path):
    engine = Engine(EngineConfig(model_id=str(make_checkpoint(tmp_path, "llama")), device="cuda", dtype="bfloat16"))
    engine.runner.layer_by_layer = True  # recording waits, of course
    submit = engine.runner.submit

    def submit_without_waiting(plan):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return submit(plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    engine.runner.submit = submit_without_waiting
    params = SamplingParams(max_new_tokens=STEPS, ignore_eos=True)
    kinds = set()
    for number, prompt in enumerate(PROMPTS):
        engine.add(Request(id=number, prompt_ids=prompt, params=params))
        for _ in range(3):
            assert not any(output.error for output in engine.step())
            kinds.add(engine.stats.kind)
    while engine.has_work:
        assert not any(output.error for output in engine.step())
        kinds.add(engine.stats.kind)
    assert kinds >= {"mixed", "decode"}
