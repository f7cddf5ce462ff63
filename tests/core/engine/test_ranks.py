"""A model divided over ranks that the engine starts, against one rank."""

import json
import os
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine import ranks as ranks_module
from tgi_core.engine.engine import Engine
from tgi_core.engine.ranks import Ranks
from tgi_core.errors import ConfigError, RankLost, RanksApart, UnsupportedModel
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 5, 40))]
GREEDY = SamplingParams(max_new_tokens=8, ignore_eos=True)
SAMPLED = SamplingParams(
    max_new_tokens=8, ignore_eos=True, do_sample=True, seed=3, top_p=0.9, repetition_penalty=1.2, top_n_tokens=2
)
FAMILIES = {
    "llama": {},
    "llama, a key and value head for both ranks": {"num_key_value_heads": 1},
    "gpt_neox": {},
    "falcon": {},
    "mixtral": {},
}


@pytest.fixture
def open_engine():
    """Engines that are closed after the test."""
    engines = []

    def open_engine(folder, **wishes):
        engines.append(Engine(EngineConfig(**{"model_id": str(folder), "device": "cpu", "dtype": "float32"} | wishes)))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


def drain(engine):
    while engine.has_work:
        engine.step()


def worker_pids(pid=None):
    """Ranks that a process, this one unless said, has started."""
    return [child.pid for child in psutil.Process(pid).children() if any("worker" in part for part in words_of(child))]


def words_of(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_until(fact, patience_s=20):
    deadline = time.monotonic() + patience_s
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def folders():
    return set(Path(tempfile.gettempdir()).glob("tgi-ranks-*"))


@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_continue_as_one_does(tmp_path, open_engine, name):
    folder = make_checkpoint(tmp_path, name.partition(",")[0], **FAMILIES[name])
    one, two = open_engine(folder), open_engine(folder, num_shard=2, max_batch_prefill_tokens=16)
    assert (one.info.num_shard, two.info.num_shard) == (1, 2)
    assert len(worker_pids()) == 1
    for params in (GREEDY, SAMPLED):
        expected, found = one.generate(PROMPTS, params), two.generate(PROMPTS, params)
        assert [c.token_ids for c in found] == [c.token_ids for c in expected]
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.tensor(left.logprobs), torch.tensor(right.logprobs), rtol=1e-3, atol=1e-3)
    two.close()
    assert not worker_pids()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_weights_are_divided(tmp_path, open_engine, quantize):
    folder = make_checkpoint(tmp_path, "llama", hidden_size=128, intermediate_size=256)
    engine = open_engine(folder, num_shard=2, quantize=quantize)
    first, again = (engine.generate(PROMPTS, GREEDY) for _ in range(2))
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert all(len(c.token_ids) == 8 for c in first)


def test_a_forgotten_engine_ends_its_ranks(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests run beside this one
    before = folders()
    engine = Engine(EngineConfig(model_id=str(checkpoint), device="cpu", num_shard=2))
    (pid,) = worker_pids()
    assert folders() - before
    affinity = os.sched_getaffinity(0)
    del engine
    wait_until(lambda: not psutil.pid_exists(pid))
    assert folders() == before
    assert os.sched_getaffinity(0) >= affinity


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_heads_that_cannot_be_divided_are_refused_before_loading(tmp_path, open_engine):
    folder = make_checkpoint(tmp_path, "gpt2", n_embd=60, n_head=3)
    with pytest.raises(UnsupportedModel, match="3 attention heads cannot be divided by 2 devices; use another"):
        open_engine(folder, num_shard=2)
    assert not worker_pids()


def test_models_that_transformers_runs_are_refused(tmp_path, open_engine):
    folder = make_checkpoint(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Unheard"]}))
    with pytest.raises(ConfigError, match="--num-shard 2 is not supported for models that transformers runs; leave it"):
        open_engine(folder, num_shard=2)
    assert not worker_pids()


def test_a_process_has_one_divided_engine(checkpoint, open_engine):
    open_engine(checkpoint, num_shard=2)
    with pytest.raises(ConfigError, match="close its engine first"):
        open_engine(checkpoint, num_shard=2)
    assert len(worker_pids()) == 1


# ---- ranks that fail ------------------------------------------------------------------------------------------------


def test_a_rank_that_cannot_start_is_named_with_what_it_wrote(checkpoint, open_engine, monkeypatch):
    monkeypatch.setattr(ranks_module, "WORKER_MODULE", "json.tool")
    with pytest.raises(RankLost, match=r"(?s)rank 1 of 2 exited with status 2; it wrote last:.*json.tool: error"):
        open_engine(checkpoint, num_shard=2)


def test_ranks_that_take_too_long_are_named(checkpoint, open_engine, monkeypatch):
    monkeypatch.setattr(ranks_module, "BUILD_PATIENCE_S", 0.0)
    with pytest.raises(RankLost, match="rank 1 of 2 did not start within 0 s"):
        open_engine(checkpoint, num_shard=2)
    assert not worker_pids()


def test_a_rank_that_fails_says_why(tmp_path, monkeypatch, open_engine):
    folder = make_checkpoint(tmp_path, "llama")
    begin = Ranks.begin
    monkeypatch.setattr(Ranks, "begin", lambda ranks, files: begin(ranks, replace(files, folder=Path("/nowhere"))))
    with pytest.raises(RankLost, match=r"rank 1 of 2 ended: .*nowhere: there is no such folder"):
        open_engine(folder, num_shard=2)


def test_a_rank_that_dies_fails_the_step_and_every_one_after(checkpoint, open_engine):
    engine = open_engine(checkpoint, num_shard=2)
    engine.add(Request(id=1, prompt_ids=[5, 6, 7], params=SamplingParams(max_new_tokens=200, ignore_eos=True)))
    engine.step()
    os.kill(worker_pids()[0], signal.SIGKILL)
    with pytest.raises(RankLost, match="rank 1 of 2 was killed by SIGKILL"):
        drain(engine)
    with pytest.raises(RankLost, match="rank 1 of 2 was killed by SIGKILL"):
        engine.check()


def test_a_step_that_fails_on_rank_0_alone_is_the_end(checkpoint, open_engine, monkeypatch):
    engine = open_engine(checkpoint, num_shard=2)
    monkeypatch.setattr(ranks_module, "NEWS_S", 0.2)

    def fail(*args, **more):
        raise MemoryError("no room")

    monkeypatch.setattr(type(engine.runner.own), "_launch", fail)
    with pytest.raises(RanksApart, match="rank 0 of 2 failed in a step of 3 rows: MemoryError: no room"):
        engine.generate(PROMPTS, GREEDY)
    engine.close()
    assert not worker_pids()


def test_who_waits_for_a_rank_that_is_gone_gives_up(monkeypatch):
    monkeypatch.setattr(ranks_module, "STUCK_S", 0.2)
    said, done = [], threading.Event()
    ranks = Ranks(EngineConfig(), 2, lambda why: (said.append(why), done.set()))

    def wait():
        os.kill(ranks._members[0].pid, signal.SIGKILL)
        assert done.wait(20)
        raise RuntimeError("what the collectives make of it")

    with pytest.raises(RankLost, match="killed by SIGKILL"), ranks.waiting():
        wait()
    ranks.close()
    assert len(said) == 1
    assert "rank 1 of 2 was killed by SIGKILL" in said[0]
