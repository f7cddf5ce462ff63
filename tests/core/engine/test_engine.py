"""The engine in-process, on a tiny model."""

from dataclasses import replace

import pytest
import torch

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.cpu.backend import CpuBackend
from tgi_core.engine.engine import FEWEST_MIXED
from tgi_core.errors import (
    ConfigError,
    DeviceUnavailable,
    InvalidRequest,
    ModelNotFound,
    UnsupportedModel,
    WeightsError,
)
from tgi_core.request import Request
from tgi_core.sampling_params import Grammar, SamplingParams
from tgi_core.testing.contract.test_faults import POISON, spoilt
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint


@pytest.fixture
def engine(checkpoint):
    return Engine(EngineConfig(model_id=str(checkpoint), device="cpu", max_batch_size=4))


def finish(engine):
    outputs = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    assert engine.scheduler.kv.pool.counts().held == 0
    return outputs


@pytest.mark.parametrize(
    ("seconds", "tokens", "measured"),
    [(1.0, FEWEST_MIXED, [64]), (1e-4, 400, [64, 128, 256, 512]), (1e-9, 700, [64, 128, 256, 512, 700])],
    ids=["a slow device", "one that is faster", "one that is fast"],
)
def test_prompts_beside_decodes_are_as_long_as_decodes_may_wait(seconds, tokens, measured, checkpoint, monkeypatch):
    def seconds_of(engine, tokens):
        found.append(tokens)
        return tokens * seconds

    found = []
    monkeypatch.setattr(CpuBackend, "capabilities", replace(CpuBackend.capabilities, mixed_tokens=64))
    monkeypatch.setattr(Engine, "_seconds_of", seconds_of)
    monkeypatch.setattr("tgi_core.engine.engine.MIXED_S", 0.04)
    engine = Engine(EngineConfig(model_id=str(checkpoint), device="cpu", max_batch_prefill_tokens=700))
    assert engine.scheduler.mixed_tokens == tokens
    assert found == measured


def test_prompts_are_timed_in_steps_of_several(checkpoint, monkeypatch):
    monkeypatch.setattr(CpuBackend, "capabilities", replace(CpuBackend.capabilities, mixed_tokens=64))
    ran, run = [], Engine._run
    monkeypatch.setattr(Engine, "_run", lambda engine, prompts, new: ran.append(prompts) or run(engine, prompts, new))
    limits = {"max_input_tokens": 30, "max_total_tokens": 40, "max_batch_prefill_tokens": 64}
    engine = Engine(EngineConfig(model_id=str(checkpoint), device="cpu", **limits))
    timed = ran[1:]
    assert [list(map(len, prompts)) for prompts in timed] == [[30, 30, 4]] * 3
    assert engine.scheduler.mixed_tokens == 64
    assert not engine.has_work


def test_a_token_without_numbers_does_not_keep_an_engine_from_starting(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(CpuBackend, "capabilities", replace(CpuBackend.capabilities, mixed_tokens=2048))
    engine = Engine(EngineConfig(model_id=str(spoilt(checkpoint, tmp_path)), device="cpu"))
    assert POISON < engine.info.vocab_size < 2048
    assert len(engine.generate([[5, 6, 7]], SamplingParams(max_new_tokens=2, ignore_eos=True))[0].token_ids) == 2


def test_text_in_text_out(engine):
    first, second = engine.generate(["The capital of France", "Does the sun"], SamplingParams(max_new_tokens=12))
    assert len(first.token_ids) == len(second.token_ids) == 12
    assert first.finish_reason == "length"
    assert first.text == engine.tokenizer.decode(first.token_ids)
    assert engine.generate(["The capital of France"], SamplingParams(max_new_tokens=12))[0].text == first.text


def test_a_stop_string_ends_the_text_right_after_it(engine):
    whole = engine.generate(["The capital"], SamplingParams(max_new_tokens=30))[0]
    stop = whole.text[8:11]
    cut = engine.generate(["The capital"], SamplingParams(max_new_tokens=30, stop=(stop,)))[0]
    assert cut.finish_reason == "stop_sequence"
    assert cut.text == whole.text[: whole.text.index(stop) + 3]
    assert not engine.has_work


def test_seeds_decide_whatever_the_batch(engine):
    params = SamplingParams(do_sample=True, temperature=1.5, seed=42, max_new_tokens=16)
    alone = engine.generate(["Hello"], params)[0]
    crowd = engine.generate(["Hello", "The sun", "and the moon, which is longer", "Hello"], params)
    assert crowd[0].token_ids == crowd[3].token_ids == alone.token_ids
    other = engine.generate(["Hello"], SamplingParams(do_sample=True, temperature=1.5, seed=43, max_new_tokens=16))[0]
    assert other.token_ids != alone.token_ids


def test_without_a_seed_the_engine_draws_and_reports_one(engine):
    params = SamplingParams(do_sample=True, max_new_tokens=2)
    engine.add(Request(id=1, prompt_ids=[5, 6], params=params))
    engine.add(Request(id=2, prompt_ids=[5, 6], params=SamplingParams(max_new_tokens=2)))
    outputs = finish(engine)
    seed = outputs[1][0].seed
    assert seed is not None
    assert outputs[2][0].seed is None
    again = Request(id=3, prompt_ids=[5, 6], params=SamplingParams(do_sample=True, max_new_tokens=2, seed=seed))
    engine.add(again)
    assert [o.token_ids for o in finish(engine)[3]] == [o.token_ids for o in outputs[1]]


@pytest.mark.parametrize("kv_cache_dtype", [None, "fp8_e4m3fn", "fp8_e5m2"])
def test_tokens_do_not_depend_on_neighbours_chunks_cache_or_preemption(checkpoint, kv_cache_dtype):
    prompts = [[(13 * i + 5 * j) % 380 for j in range(3 + 17 * i)] for i in range(6)]
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    settings = {
        "model_id": str(checkpoint), "device": "cpu", "dtype": "float32", "kv_cache_dtype": kv_cache_dtype
    }  # fmt: skip
    roomy = Engine(EngineConfig(**settings))
    expected = [roomy.generate([prompt], params)[0].token_ids for prompt in prompts]
    tight = Engine(
        EngineConfig(**settings, max_batch_total_tokens=256, max_total_tokens=256, max_batch_prefill_tokens=24)
    )
    preemptions = 0
    for number, prompt in enumerate(prompts):
        tight.add(Request(id=number, prompt_ids=prompt, params=params))
    tokens = {}
    while tight.has_work:
        for output in tight.step():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
        preemptions += tight.stats.preemptions
    assert [tokens[number] for number in range(6)] == expected
    assert preemptions > 0


@pytest.mark.parametrize("kv_cache_dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_keys_and_values_in_float8_are_near_and_take_half_the_memory(checkpoint, kv_cache_dtype):
    prompt = [[(13 * j) % 380 for j in range(60)]]
    params = SamplingParams(max_new_tokens=1, top_n_tokens=5)
    settings = {"model_id": str(checkpoint), "device": "cpu", "dtype": "bfloat16"}
    plain = Engine(EngineConfig(**settings, kernels={"attention": "torch"}))
    narrow = Engine(EngineConfig(**settings, kv_cache_dtype=kv_cache_dtype))
    assert 2 * narrow.runner.attention.block_bytes() == plain.runner.attention.block_bytes()
    assert (plain.info.kv_cache_dtype, narrow.info.kv_cache_dtype) == ("bfloat16", kv_cache_dtype)
    assert narrow.info.kernels["attention"] == "torch"
    logprobs = []
    for engine in (plain, narrow):
        engine.add(Request(id=1, prompt_ids=prompt[0], params=params))
        logprobs.append(finish(engine)[1][0].logprobs[0])
    assert logprobs[0] != logprobs[1]
    assert logprobs[1] == pytest.approx(logprobs[0], abs=0.3)


def test_a_model_that_keeps_its_state_itself_refuses_a_format_for_it(tmp_path):
    folder = make_checkpoint(tmp_path, "mamba")
    with pytest.raises(ConfigError, match=r"--kv-cache-dtype fp8_e5m2: .* in its own dtype; leave it out"):
        Engine(EngineConfig(model_id=str(folder), device="cpu", kv_cache_dtype="fp8_e5m2"))


def test_abort_frees_blocks_before_the_next_step(engine):
    engine.add(Request(id=1, prompt_ids=[5] * 100, params=SamplingParams(max_new_tokens=50)))
    engine.step()
    assert engine.scheduler.kv.pool.counts().held > 0
    assert engine.abort(1)
    assert engine.scheduler.kv.pool.counts().held == 0
    assert not engine.abort(1)
    assert finish(engine) == {}


def test_a_row_that_fails_ends_alone(engine, monkeypatch):
    sample = engine.runner.sampler.sample

    def fail_for_one(logits, slots):
        if any(engine.runner.sampler.state(slot).params.top_k == 666 for slot in slots):
            raise ZeroDivisionError("provoked")
        return sample(logits, slots)

    params = SamplingParams(max_new_tokens=5)
    healthy = engine.generate(["fine"], params)[0].token_ids
    monkeypatch.setattr(engine.runner.sampler, "sample", fail_for_one)
    ids = engine.tokenizer.encode("fine")
    engine.add(Request(id=1, prompt_ids=ids, params=params))
    engine.add(Request(id=2, prompt_ids=ids, params=SamplingParams(max_new_tokens=5, do_sample=True, top_k=666)))
    engine.add(Request(id=3, prompt_ids=ids, params=params))
    outputs = finish(engine)
    assert outputs[2][-1].finish_reason == "error"
    assert "provoked" in outputs[2][-1].error
    for number in (1, 3):
        assert [token for output in outputs[number] for token in output.token_ids] == healthy


def test_nan_logits_end_one_request_with_an_explanation(engine, monkeypatch):
    logits = engine.runner.model.logits

    def poison_first_row(hidden):
        out = logits(hidden)
        if len(out) > 1:
            out[0] = float("nan")
        return out

    monkeypatch.setattr(engine.runner.model, "logits", poison_first_row)
    for number in (1, 2):
        engine.add(Request(id=number, prompt_ids=[5, 6, 7], params=SamplingParams(max_new_tokens=4)))
    outputs = finish(engine)
    assert outputs[1][-1].finish_reason == "error"
    assert "NaN" in outputs[1][-1].error
    assert outputs[2][-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"temperature": float("inf")}, "`temperature`"),
        ({"top_k": -1}, "`top_k` must be >= 0"),
        ({"top_k": 2**32}, "`top_k`"),
        ({"top_p": 0.0}, "`top_p` must be > 0.0 and <= 1.0"),
        ({"min_p": 1.0}, "`min_p`"),
        ({"typical_p": 1.1}, "`typical_p`"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.1}, "`frequency_penalty`"),
        ({"presence_penalty": float("nan")}, "`presence_penalty`"),
        ({"logit_bias": {5: float("inf")}}, "`logit_bias`"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 2**64}, "`seed`"),
        ({"min_new_tokens": -1}, "`min_new_tokens`"),
        ({"top_n_tokens": -1}, "`top_n_tokens`"),
        ({"stop_token_ids": (VOCABULARY,)}, "not in the vocabulary"),
    ],
)
def test_parameters_that_cannot_be_computed_with_are_refused(engine, params, message):
    with pytest.raises(InvalidRequest, match=message):
        engine.generate([[5, 6]], SamplingParams(**params))
    assert not engine.has_work


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(id=1, prompt_ids=[]), "cannot be empty"),
        (Request(id=1, prompt_ids=[10**6]), "not in the vocabulary"),
        (Request(id=1, prompt_ids=[1], params=SamplingParams(max_new_tokens=10**6)), "must be <= 512"),
        (Request(id=1, prompt_ids=[1], params=SamplingParams(logit_bias={-3: 1.0})), "token id -3"),
        (
            Request(id=1, prompt_ids=[1], params=SamplingParams(grammar=Grammar(kind="regex", value="a"))),
            "grammar is not supported",
        ),
    ],
)
def test_invalid_requests_are_refused_and_leave_nothing_behind(engine, request_, message):
    with pytest.raises(InvalidRequest, match=message):
        engine.add(request_)
    assert not engine.has_work


def test_info_says_what_was_chosen_and_why(engine):
    info = engine.info
    assert (info.device, info.dtype, info.architecture) == ("cpu", "float32", "LlamaForCausalLM")
    assert info.custom_kernels
    assert {reason.setting for reason in info.reasons} >= {"device", "dtype", "max_batch_total_tokens"}


def test_disable_custom_kernels_takes_the_reference_everywhere(checkpoint):
    engine = Engine(EngineConfig(model_id=str(checkpoint), device="cpu", disable_custom_kernels=True))
    assert set(engine.info.kernels.values()) == {"reference"}
    assert not engine.info.custom_kernels


def test_a_head_in_the_checkpoint_is_used_whatever_the_config_says(tmp_path):
    folder = make_checkpoint(tmp_path, "llama", tie_word_embeddings=False)
    config = folder / "config.json"
    expected = Engine(EngineConfig(model_id=str(folder), device="cpu")).generate([[5, 6]])[0].token_ids
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    assert Engine(EngineConfig(model_id=str(folder), device="cpu")).generate([[5, 6]])[0].token_ids == expected


def test_the_tokenizers_end_is_used_where_the_config_names_none(tmp_path):
    folder = make_checkpoint(tmp_path, "llama", eos_token_id=None)
    (folder / "generation_config.json").unlink(missing_ok=True)
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu"))
    assert engine.scheduler.finish.eos_token_ids == {2}


def test_generate_does_not_swallow_the_outputs_of_queued_requests(engine):
    engine.add(Request(id=1, prompt_ids=[5], params=SamplingParams(max_new_tokens=3)))
    with pytest.raises(InvalidRequest, match="still run"):
        engine.generate(["Hello"])
    assert sum(len(output.token_ids) for output in finish(engine)[1]) == 3


def test_a_sequence_that_cannot_be_admitted_ends_alone(engine, monkeypatch):
    admit = engine.runner.sampler.admit

    def refuse_one(admission):
        if admission.sequence_id == 2:
            raise MemoryError("provoked")
        admit(admission)

    monkeypatch.setattr(engine.runner.sampler, "admit", refuse_one)
    for number in (1, 2, 3):
        engine.add(Request(id=number, prompt_ids=[5, 6], params=SamplingParams(max_new_tokens=3)))
    outputs = finish(engine)
    assert outputs[2][-1].error == "MemoryError: provoked"
    assert outputs[1][-1].finish_reason == outputs[3][-1].finish_reason == "length"


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 384', '"vocab_size": 1000000000000'))
    with pytest.raises(WeightsError, match=r"embed_tokens\.weight has shape"):
        Engine(EngineConfig(model_id=str(folder), device="cpu"))


def test_dynamic_rope_wishes_change_the_frequencies(checkpoint):
    engines = [
        Engine(EngineConfig(model_id=str(checkpoint), device="cpu", rope_scaling=rule, rope_factor=factor))
        for rule, factor in ((None, None), ("dynamic", 4.0))
    ]
    frequencies = [e.runner.model.layers[0].self_attn.attn.rotary.frequencies.inverse for e in engines]
    assert not torch.equal(*frequencies)


def test_rope_wishes_stretch_the_context(checkpoint):
    engine = Engine(EngineConfig(model_id=str(checkpoint), device="cpu", rope_scaling="linear", rope_factor=4.0))
    assert engine.info.max_total_tokens == 2048


def test_bfloat16_follows_float32_closely(checkpoint):
    prompt = list(range(40, 80))
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=True)
    found = []
    for dtype in ("float32", "bfloat16"):
        engine = Engine(EngineConfig(model_id=str(checkpoint), device="cpu", dtype=dtype))
        engine.add(Request(id=1, prompt_ids=prompt, params=params))
        found.append(torch.tensor(finish(engine)[1][0].prompt_logprobs[1:]))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.5)


def test_a_head_that_is_missing_is_the_embedding(tmp_path):
    folder = make_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    assert Engine(EngineConfig(model_id=str(folder), device="cpu")).generate([[5, 6]])[0].token_ids


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 128', '"intermediate_size": 96'))
    with pytest.raises(WeightsError, match=r"layers.0.mlp.gate_proj.weight has shape \[128, 64\].*\[96, 64\]"):
        Engine(EngineConfig(model_id=str(folder), device="cpu"))


@pytest.mark.parametrize(
    ("wishes", "error"),
    [
        ({"model_id": "/nowhere/at/all"}, ModelNotFound),
        ({"device": "cuda-that-is-not-there"}, DeviceUnavailable),
    ],
)
def test_what_cannot_start_says_why(checkpoint, wishes, error):
    with pytest.raises(error):
        Engine(EngineConfig(**{"model_id": str(checkpoint), "device": "cpu", **wishes}))


def test_an_unknown_architecture_falls_back_and_says_so(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    config = folder / "config.json"
    expected = Engine(EngineConfig(model_id=str(folder), device="cpu")).generate([[5, 6]])[0].token_ids
    config.write_text(config.read_text().replace("LlamaForCausalLM", "LamaForCausalLM"))
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu"))
    assert "the nearest known one is LlamaForCausalLM" in engine.info.fallback
    assert engine.generate([[5, 6]])[0].token_ids == expected


def test_a_model_that_even_transformers_does_not_know_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    config = folder / "config.json"
    text = config.read_text().replace("LlamaForCausalLM", "LamaForCausalLM")
    config.write_text(text.replace('"model_type": "llama"', '"model_type": "lama"'))
    with pytest.raises(UnsupportedModel, match="transformers cannot load"):
        Engine(EngineConfig(model_id=str(folder), device="cpu"))
