"""What the runner of transformers' caches holds on to, and what a failure costs."""

import pytest

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

PROMPTS = [[(5 * i + 3 * j) % VOCABULARY for j in range(length)] for i, length in enumerate((4, 11, 150, 11))]
PARAMS = SamplingParams(max_new_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("gpt_neo"), "gpt_neo")


@pytest.fixture(scope="module")
def expected(folder):
    return [completion.token_ids for completion in make_engine(folder).generate(PROMPTS, PARAMS)]


def make_engine(folder):
    return Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32"))


def run(engine, outputs, errors):
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).extend(output.token_ids)
            if output.error:
                errors[output.request_id] = output.error


def groups(engine):
    return [len(group.ids) for group in engine.runner._groups]


def test_much_shorter_sequences_decode_apart(folder):
    engine = make_engine(folder)
    for number, prompt in enumerate(PROMPTS):
        engine.add(Request(id=number, prompt_ids=prompt, params=PARAMS))
    for _ in range(4):
        engine.step()
    assert sorted(groups(engine)) == [1, 3]


def test_requests_of_one_token_leave_nothing_behind(folder):
    engine = make_engine(folder)
    for _ in range(3):
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=1))
    assert sum(groups(engine)) <= len(PROMPTS)


@pytest.mark.parametrize("failing_call", range(1, 6))
def test_a_step_that_fails_once_is_computed_again(folder, expected, monkeypatch, failing_call):
    engine = make_engine(folder)
    decoder, calls = engine.runner.model.decoder, []
    decode = decoder.decode

    def fails_once(tokens, batch):
        logits = decode(tokens, batch)
        calls.append(len(tokens))
        if len(calls) == failing_call:
            raise RuntimeError("out of memory")
        return logits

    monkeypatch.setattr(decoder, "decode", fails_once)
    outputs, errors = {}, {}
    for number, prompt in enumerate(PROMPTS):
        engine.add(Request(id=number, prompt_ids=prompt, params=PARAMS))
    run(engine, outputs, errors)
    assert not errors
    assert [outputs[number] for number in range(len(PROMPTS))] == expected


def test_a_sequence_that_always_fails_fails_alone(folder, expected, monkeypatch):
    engine = make_engine(folder)
    decoder = engine.runner.model.decoder
    prefill, decode = decoder.prefill, decoder.decode
    bad = PROMPTS[1][0]

    def fails_when_long(tokens, sources, **options):
        if tokens.shape[1] > len(PROMPTS[1]) and (tokens[:, 0] == bad).any():
            raise RuntimeError("cannot")
        return prefill(tokens, sources, **options)

    def fails_in_company_of_bad(tokens, batch):
        if batch.length > 11 and any(member == 1 for group in engine.runner._groups for member in group.ids):
            raise RuntimeError("cannot")
        return decode(tokens, batch)

    monkeypatch.setattr(decoder, "prefill", fails_when_long)
    monkeypatch.setattr(decoder, "decode", fails_in_company_of_bad)
    outputs, errors = {}, {}
    for number, prompt in enumerate(PROMPTS):
        engine.add(Request(id=number, prompt_ids=prompt, params=PARAMS))
    run(engine, outputs, errors)
    assert list(errors) == [1]
    assert "cannot" in errors[1]
    assert [outputs[number] for number in (0, 2, 3)] == [expected[number] for number in (0, 2, 3)]
