"""What fails harms nobody else, and leaves nothing behind."""

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import InvalidRequest
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint

GREEDY = SamplingParams(max_new_tokens=6, ignore_eos=True)


@pytest.fixture
def engine(vendor, tmp_path):
    engine = Engine(EngineConfig(model_id=str(make_checkpoint(tmp_path, "llama")), device=vendor.probe.kind))
    yield engine
    engine.close()


def finish(engine):
    reasons = {}
    while engine.has_work:
        for output in engine.step():
            if output.finish_reason:
                reasons[output.request_id] = output.finish_reason, output.error
    return reasons


def test_requests_over_the_limits_are_refused_before_they_run(engine):
    longest = engine.info.max_total_tokens
    with pytest.raises(InvalidRequest):
        engine.add(Request(id=1, prompt_ids=[5] * longest, params=GREEDY))
    with pytest.raises(InvalidRequest):
        engine.add(Request(id=2, prompt_ids=[], params=GREEDY))
    assert not engine.has_work
    assert len(engine.generate([[5, 6, 7]], GREEDY)[0].token_ids) == 6


def test_a_prompt_that_the_model_fails_on_harms_nobody_else(engine, monkeypatch):
    model = getattr(engine.runner, "model", None)
    if model is None:
        pytest.skip("the runner has no model that could be made to fail")
    alone, forward = engine.generate([[5, 6, 7]], GREEDY)[0].token_ids, model.forward
    poison = 13

    def fail_on_poison(ids, *rest):
        if bool((ids == poison).any()):
            raise RuntimeError("provoked by the contract")
        return forward(ids, *rest)

    monkeypatch.setattr(model, "forward", fail_on_poison)
    engine.add(Request(id=1, prompt_ids=[5, 6, 7], params=GREEDY))
    engine.add(Request(id=2, prompt_ids=[poison] * 90, params=GREEDY))
    tokens, ends = [], {}
    while engine.has_work:
        for output in engine.step():
            tokens += output.token_ids if output.request_id == 1 else []
            if output.finish_reason:
                ends[output.request_id] = output
    assert tokens == alone
    assert ends[1].finish_reason == "length"
    if ends[2].finish_reason == "error":  # where steps are compiled the model may not be asked again
        assert "provoked" in ends[2].error
    assert engine.scheduler.kv.pool.counts().held == 0


def test_a_model_that_computes_no_numbers_says_so(engine, monkeypatch):
    model = getattr(engine.runner, "model", None)
    if model is None or not hasattr(model, "logits"):
        pytest.skip("the runner has no model whose logits could be spoilt")
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: logits(hidden) * float("nan"))
    engine.add(Request(id=1, prompt_ids=[5, 6, 7], params=GREEDY))
    reasons = finish(engine)
    assert reasons[1][0] == "error"
    assert "NaN" in reasons[1][1]
    monkeypatch.undo()
    torch.manual_seed(0)
    assert len(engine.generate([[5, 6, 7]], GREEDY)[0].token_ids) == 6
