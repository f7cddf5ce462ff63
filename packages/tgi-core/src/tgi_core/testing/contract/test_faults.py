"""What fails harms nobody else, and leaves nothing behind."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import InvalidRequest
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams

POISON = 13  #: a token
GREEDY = SamplingParams(max_new_tokens=6, ignore_eos=True)


@pytest.fixture
def engine(vendor, checkpoints):
    engine = Engine(EngineConfig(model_id=str(checkpoints.folder / "llama"), device=vendor.probe.kind))
    yield engine
    engine.close()


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

    def fail_on_poison(ids, *rest):
        if bool((ids == POISON).any()):
            raise RuntimeError("provoked by the contract")
        return forward(ids, *rest)

    monkeypatch.setattr(model, "forward", fail_on_poison)
    engine.add(Request(id=1, prompt_ids=[5, 6, 7], params=GREEDY))
    engine.add(Request(id=2, prompt_ids=[POISON] * 90, params=GREEDY))
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


def test_a_model_that_computes_no_numbers_says_so_and_leaves_nothing_behind(vendor, checkpoints, tmp_path):
    """Neither to those beside it nor, in memory that is used again, to those after it."""
    engine = Engine(
        EngineConfig(model_id=str(spoilt(checkpoints.folder / "llama", tmp_path)), device=vendor.probe.kind)
    )
    good, bad = [5, 6, 7], [5, POISON, 7] * 11
    alone = engine.generate([good], GREEDY)[0].token_ids
    engine.add(Request(id=1, prompt_ids=good, params=GREEDY))
    engine.add(Request(id=2, prompt_ids=bad, params=GREEDY))
    tokens, ends = [], {}
    while engine.has_work:
        for output in engine.step():
            tokens += output.token_ids if output.request_id == 1 else []
            if output.finish_reason:
                ends[output.request_id] = output
    assert (tokens, ends[1].finish_reason) == (alone, "length")
    assert ends[2].finish_reason == "error"
    assert "NaN" in ends[2].error
    assert [found.token_ids for found in engine.generate([good] * 4, GREEDY)] == [alone] * 4
    engine.close()


def spoilt(folder, target):
    """A copy of a checkpoint whose embedding of POISON is not a number."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    weights = load_file(target / "model.safetensors")
    (embedding,) = (name for name in weights if "embed_tokens" in name)
    weights[embedding][POISON] = float("nan")
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target
