"""Core's models in fixed shapes say what they say elsewhere, whoever joins and leaves."""

import pytest

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import ConfigError, UnsupportedModel
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint, write_tokenizer

PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 5, 40, 17, 33, 16, 50))]
LENGTHS = (9, 20, 3, 12, 30, 5, 14)
FAMILIES = (
    "bloom", "cohere", "falcon", "gemma", "gemma2", "gpt2", "gpt_bigcode", "gpt_neox", "llama", "mistral", "mixtral",
    "mpt", "opt", "phi", "qwen3_moe", "starcoder2", "t5",
)  # fmt: skip


def serve(engine, prompts=PROMPTS, lengths=LENGTHS, **options):
    """Requests come two steps apart: the tokens of each."""
    tokens, waiting = {}, list(enumerate(zip(prompts, lengths, strict=True)))
    errors = []
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


def on_cpu(folder, **wishes):
    return Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32", max_batch_size=4, **wishes))


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_cpu_and_nothing_is_compiled_late(tmp_path, static_engine, family):
    folder = make_checkpoint(tmp_path, family)
    engine = static_engine(folder)
    backend = engine.runner.backend
    warmed = set(backend.calls)
    assert serve(engine) == serve(on_cpu(folder))
    assert set(backend.calls) == warmed


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_sequences_that_were_preempted_go_on(tmp_path, static_engine, family):
    folder = make_checkpoint(tmp_path, family)
    engine = static_engine(folder, max_batch_total_tokens=176)
    warmed, preemptions = set(engine.runner.backend.calls), []
    step = engine.step
    engine.step = lambda: (step(), preemptions.append(engine.stats.preemptions))[0]
    prompts, lengths = PROMPTS[:4], (50, 50, 50, 50)
    assert serve(engine, prompts, lengths) == serve(on_cpu(folder), prompts, lengths)
    assert sum(preemptions) > 0
    assert set(engine.runner.backend.calls) == warmed


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_sampled_tokens_are_those_of_the_cpu(tmp_path, static_engine, family):
    folder = make_checkpoint(tmp_path, family)
    options = {"do_sample": True, "seed": 3, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2}
    assert serve(static_engine(folder), **options) == serve(on_cpu(folder), **options)


def test_log_probabilities_of_prompts(tmp_path, static_engine):
    folder = make_checkpoint(tmp_path)
    found = []
    for engine in (static_engine(folder), on_cpu(folder)):
        params = SamplingParams(max_new_tokens=2, ignore_eos=True, prompt_logprobs=True)
        for number, prompt in enumerate(PROMPTS):
            engine.add(Request(id=number, prompt_ids=prompt, params=params))
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        by_id = sorted((output.request_id, output.prompt_logprobs) for output in outputs if output.prompt_logprobs)
        found.append([logprob for _, logprobs in by_id for logprob in logprobs if logprob is not None])
    assert len(found[0]) == sum(len(prompt) - 1 for prompt in PROMPTS)
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_what_a_failed_sequence_leaves_behind_touches_nobody(tmp_path, static_engine):
    folder = make_checkpoint(tmp_path)
    engine = static_engine(folder)
    expected = serve(on_cpu(folder))
    for keys, values in engine.runner.attention._caches.values():
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    assert serve(engine) == expected


def test_a_step_that_fails_costs_its_sequence_only(tmp_path, static_engine, monkeypatch):
    folder = make_checkpoint(tmp_path)
    engine = static_engine(folder)
    upload = engine.runner._upload

    def fail(given):
        if given["ids"].shape[0] == 2 and 113 in given["ids"]:
            raise RuntimeError("no 113")
        return upload(given)

    monkeypatch.setattr(engine.runner, "_upload", fail)
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    for number, prompt in enumerate(([5, 113], [5, 112])):
        engine.add(Request(id=number, prompt_ids=prompt, params=params))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert [output.error for output in outputs if output.request_id == 0] == ["RuntimeError: no 113"]
    assert sum(len(output.token_ids) for output in outputs if output.request_id == 1) == 4


def test_without_warm_up_shapes_are_met_as_they_come(tmp_path, static_engine):
    engine = static_engine(make_checkpoint(tmp_path), {"WARMUP_ENABLED": "false"})
    assert {(name, *shapes[0]) for name, *shapes in engine.runner.backend.calls} == {
        ("PaddedPrefill", "ids", (4, 96 + 32)),
        ("PaddedDecode", "ids", (4,)),
    }


def test_models_whose_shapes_grow_are_refused(tmp_path, static_engine):
    folder = make_checkpoint(tmp_path, "bart")
    with pytest.raises(UnsupportedModel, match=r"its shapes change with every token.*serve it on another device"):
        static_engine(folder)


@pytest.mark.parametrize("quantization", ["int8", "awq"])
def test_quantizations_without_kernels_are_refused(tmp_path, static_engine, quantization):
    with pytest.raises(ConfigError, match="no kernel for it on Gaudi here"):
        static_engine(make_checkpoint(tmp_path), quantize=quantization)


def test_a_model_that_only_transformers_knows(tmp_path, static_engine):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("olmo", vocab_size=VOCABULARY, max_position_embeddings=512, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    engine = static_engine(tmp_path)
    assert "paged cache" in engine.info.fallback
    warmed = set(engine.runner.backend.calls)
    assert serve(engine) == serve(on_cpu(tmp_path))
    assert set(engine.runner.backend.calls) == warmed


def test_float8_of_core_s_models_is_refused(tmp_path, static_engine):
    quant = tmp_path / "quant.json"
    quant.write_text("{}")
    with pytest.raises(ConfigError, match="float8 is for optimum-habana's models"):
        static_engine(make_checkpoint(tmp_path), {"QUANT_CONFIG": str(quant)})
