"""Every family on the stand-in: transformers' tokens, whoever joins and leaves, and nothing compiled late or twice."""

import json
import sys
from pathlib import Path

import pytest
import torch
from habana_standin import compiled

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import ConfigError
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_gaudi.optimum.runner import SlotRunner
from tgi_gaudi.runner import PaddedRunner

sys.path.insert(0, str(Path(__file__).parent))
from workload import CHECKPOINTS, LENGTHS, PROMPTS

SMALL = {"BATCH_BUCKET_SIZE": "2", "PREFILL_BATCH_BUCKET_SIZE": "2", "PAD_SEQUENCE_TO_MULTIPLE_OF": "16"}
BY_CORE = {
    "bloom", "cohere", "falcon-40b", "gemma", "gemma2", "gptj", "granite", "llama-heads", "llama-linear",
    "mistral-window", "opt", "phi-grouped", "qwen2_moe-dense", "starcoder", "starcoder2", "t5",
}  # fmt: skip
FLASH = {"USE_FLASH_ATTENTION": "true", "FLASH_ATTENTION_RECOMPUTE": "true"}


@pytest.fixture(autouse=True)
def _fresh_book():
    torch.set_num_threads(1)
    compiled.reset()
    yield
    compiled.reset()


@pytest.fixture
def make(checkpoints, monkeypatch):
    """make(name, **environment): an engine that serves this checkpoint."""

    def engine(name, environment=(), **wishes):
        for variable, value in {**SMALL, **dict(environment)}.items():
            monkeypatch.setenv(variable, value)
        given = {"dtype": "float32", "max_batch_size": 4, "max_input_tokens": 40, "max_total_tokens": 96, **wishes}
        return Engine(EngineConfig(model_id=str(checkpoints[0] / name), device="gaudi", **given))

    return engine


def serve(engine, prompts=PROMPTS, lengths=LENGTHS, **options):
    """Requests come two steps apart: the tokens of each."""
    tokens, errors, waiting = {}, [], list(enumerate(zip(prompts, lengths, strict=True)))
    while waiting or engine.has_work:
        if waiting:
            number, (prompt, length) = waiting.pop(0)
            params = SamplingParams(max_new_tokens=length, ignore_eos=True, **options)
            engine.add(Request(id=number, prompt_ids=prompt, params=params))
        for _ in range(2):
            for output in engine.step():
                tokens.setdefault(output.request_id, []).extend(output.token_ids)
                errors += [output.error] if output.error else []
    assert not errors
    return [tokens[number] for number in range(len(prompts))]


#: the shape of `ids` in every step, as SMALL and the limits of `make` have it
DECLARED = {
    SlotRunner: {
        *(("SlotPrefill", (2, length)) for length in (16, 32, 48)),
        *(("SlotDecode", (rows, 1)) for rows in (2, 4)),
    },
    PaddedRunner: {
        *(("PaddedPrefill", (2, length)) for length in (16, 32, 48)),
        *(("PaddedDecode", (rows,)) for rows in (2, 4)),
    },
}
DECLARED_T5 = {("PaddedPrefill", (2, 1)), *(("PaddedDecode", (rows,)) for rows in (2, 4))}


def captured():
    """(module, shape of its `ids`) of every capture of a step."""
    named = ((module, dict(key[2])) for module, key in compiled.captures)
    return {(module, given["ids"][1]) for module, given in named if "ids" in given}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tokens_are_those_of_transformers_in_shapes_that_were_compiled_once(checkpoints, make, name):
    engine = make(name)
    assert type(engine.runner) is (PaddedRunner if name in BY_CORE else SlotRunner)
    compiled.close()
    assert serve(engine) == checkpoints[1][name]
    assert set(compiled.captures.values()) == {1}
    assert captured() == (DECLARED_T5 if name == "t5" else DECLARED[type(engine.runner)])
    assert sum(compiled.replays.values()) > 50


@pytest.mark.parametrize("name", sorted(set(CHECKPOINTS) - BY_CORE))
def test_sequences_may_be_as_long_as_the_model_knows_positions(checkpoints, make, name):
    engine = make(name, {"PAD_SEQUENCE_TO_MULTIPLE_OF": "128"}, max_input_tokens=None, max_total_tokens=None)
    assert engine.info.max_total_tokens >= 512
    assert serve(engine) == checkpoints[1][name]


@pytest.mark.parametrize("name", ["falcon", "falcon-40b", "llama", "mixtral", "mpt", "qwen3", "starcoder2"])
def test_flash_attention_changes_no_token(checkpoints, make, name):
    engine = make(name, FLASH)
    assert type(engine.runner) is SlotRunner
    compiled.close()
    assert serve(engine) == checkpoints[1][name]


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "mpt"])
def test_sequences_that_move_to_the_left_say_the_same(checkpoints, make, name):
    engine = make(name, {"PAD_SEQUENCE_TO_MULTIPLE_OF": "4"}, max_total_tokens=84)
    assert serve(engine) + serve(engine) == 2 * checkpoints[1][name]
    assert sum(count for (module, _), count in compiled.replays.items() if module == "SlotRoll") > 1


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_prompts_without_graphs(checkpoints, make, name):
    engine = make(name, {"LIMIT_HPU_GRAPH": "true"})
    assert serve(engine) == checkpoints[1][name]
    assert {module for module, _ in compiled.captures} <= {"SlotDecode", "SlotRoll", "PaddedDecode"}


@pytest.mark.parametrize("environment", [{"ENABLE_HPU_GRAPH": "false"}, {"PT_HPU_LAZY_MODE": "0"}])
def test_no_graphs_at_all(checkpoints, make, environment):
    assert serve(make("llama", environment)) == checkpoints[1]["llama"]
    assert not compiled.captures


def test_every_prompt_padded_to_the_longest(checkpoints, make):
    engine = make("llama", {"PAD_SEQUENCE_TO_MULTIPLE_OF": "0"})
    compiled.close()
    assert serve(engine) == checkpoints[1]["llama"]


def test_without_warm_up_shapes_are_compiled_as_they_come(checkpoints, make):
    engine = make("llama", {"WARMUP_ENABLED": "false"})
    assert len(compiled.captures) == 2  # of the first step: a prompt, and a decode
    assert serve(engine) == checkpoints[1]["llama"]
    assert set(compiled.captures.values()) == {1}


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "starcoder"])
def test_log_probabilities_of_prompts(checkpoints, make, name):
    engine = make(name)
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=True)
    for number, prompt in enumerate(PROMPTS):
        engine.add(Request(id=number, prompt_ids=prompt, params=params))
    found = {}
    while engine.has_work:
        found |= {output.request_id: output.prompt_logprobs for output in engine.step()}
    expected = json.loads((checkpoints[0] / "logprobs.json").read_text())[name]
    for number, logprobs in enumerate(expected):
        assert found[number][0] is None
        assert found[number][1:] == pytest.approx(logprobs, abs=1e-4)


def test_a_slot_that_failed_leaves_nothing_to_the_next_sequence(checkpoints, make):
    engine = make("llama")
    for layer in engine.runner.model.cache:
        for part in layer:
            part.fill_(float("nan"))
    assert serve(engine) == checkpoints[1]["llama"]


def test_a_step_that_fails_costs_its_sequence_only(checkpoints, make, monkeypatch):
    engine = make("llama")
    upload, bad = engine.runner._upload, checkpoints[1]["llama"][1][3]

    def fail(given):
        if given["ids"].shape[1] == 1 and bad in given["ids"]:
            raise RuntimeError("that token")
        return upload(given)

    monkeypatch.setattr(engine.runner, "_upload", fail)
    for number in (1, 4):
        params = SamplingParams(max_new_tokens=LENGTHS[number], ignore_eos=True)
        engine.add(Request(id=number, prompt_ids=PROMPTS[number], params=params))
    tokens, errors = {1: [], 4: []}, {}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
            if output.error:
                errors[output.request_id] = output.error
    assert errors == {1: "RuntimeError: that token"}
    assert tokens[4] == checkpoints[1]["llama"][4]
    assert tokens[1] == checkpoints[1]["llama"][1][:4]


def test_slots_that_do_not_fit_into_memory_are_refused(make):
    with pytest.raises(ConfigError, match="lower --max-total-tokens or --max-batch-size"):
        make("llama", max_total_tokens=500, max_batch_size=2000)
