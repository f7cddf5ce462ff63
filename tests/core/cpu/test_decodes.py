"""Recorded decodes give what decodes called layer by layer give, bit by bit."""

import pytest

from tgi_core.config import EngineConfig
from tgi_core.cpu import native
from tgi_core.cpu.backend import CpuBackend
from tgi_core.engine.engine import Engine
from tgi_core.request import Request
from tgi_core.runner.graph import GraphRunner
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint

LENGTHS = (1, 40, 33, 5, 70)
WISHES = (
    SamplingParams(max_new_tokens=40, ignore_eos=True),
    SamplingParams(max_new_tokens=9, ignore_eos=True, do_sample=True, seed=7, temperature=0.7, top_n_tokens=2),
)


@pytest.fixture(autouse=True)
def compiled(variant):
    if native.unavailable():
        pytest.skip(native.unavailable())


def serve(folder, **settings):
    """(engine, tokens and log-probabilities of each request); one request more every second step."""
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu", **settings))
    waiting = [
        Request(id=i, prompt_ids=[(7 * i + j * j) % 384 for j in range(length)], params=WISHES[i % 3 == 2])
        for i, length in enumerate(LENGTHS, 1)
    ]
    found = {request.id: [] for request in waiting}
    step = 0
    while waiting or engine.has_work:
        if waiting and step % 2 == 0:
            engine.add(waiting.pop(0))
        step += 1
        for output in engine.step():
            assert not output.error
            found[output.request_id].append((output.token_ids, output.logprobs))
    return engine, found


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_tokens_of_rounded_weights_are_those_of_the_plain_runner(tmp_path, monkeypatch, family, quantize):
    folder = make_checkpoint(tmp_path, family)
    engine, found = serve(folder, quantize=quantize)
    assert engine.runner._recorded
    assert all(recorded is not None for recorded in engine.runner._recorded.values())
    monkeypatch.setattr(CpuBackend, "runner", "tgi_core.runner.eager:EagerRunner")
    assert serve(folder, quantize=quantize)[1] == found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mpt", "t5", "mixtral", "qwen2_moe"])
def test_tokens_are_those_of_the_plain_runner(tmp_path, monkeypatch, family, dtype):
    folder = make_checkpoint(tmp_path, family)
    engine, found = serve(folder, dtype=dtype)
    assert isinstance(engine.runner, GraphRunner)
    assert {size.rows for size in engine.runner._recorded} >= {1, 2, 3}
    assert all(recorded is not None for recorded in engine.runner._recorded.values())
    monkeypatch.setattr(CpuBackend, "runner", "tgi_core.runner.eager:EagerRunner")
    assert serve(folder, dtype=dtype)[1] == found
