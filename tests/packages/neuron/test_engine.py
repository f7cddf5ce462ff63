"""The whole engine on compiled graphs: token for token what transformers says."""

import json
import math
import random
from collections import Counter

import pytest
import torch
from checkpoints import checkpoint, greedy, open_engine, prompt_of, request, said_by_transformers
from neuronx_distributed.trace.model_builder import CompiledModel

from tgi_core.errors import ConfigError, InvalidRequest, UnsupportedModel
from tgi_core.sampling_params import SamplingParams
from tgi_neuron import plan
from tgi_neuron.runner import NeuronRunner

FAMILIES = ("granite", "llama", "llama4_text", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3")
PROMPTS = [prompt_of(seed, length) for seed, length in enumerate((1, 2, 5, 30, 17, 9))]


@pytest.fixture
def llama(tmp_path):
    return checkpoint(tmp_path / "llama")


def texts(engine, params, prompts=PROMPTS):
    return [completion.token_ids for completion in engine.generate(prompts, params)]


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(tmp_path, monkeypatch, family, sampling):
    monkeypatch.setenv("TGI_NEURON_SAMPLING", sampling)
    folder = checkpoint(tmp_path, family)
    engine = open_engine(folder)
    assert (engine.info.device, engine.info.product) == ("neuron", "AWS Neuron (trn1)")
    assert isinstance(engine.runner, NeuronRunner)
    assert texts(engine, greedy(12)) == said_by_transformers(folder, PROMPTS, 12)


@pytest.mark.parametrize("settings", [{"tie_word_embeddings": True}, {"num_key_value_heads": 4}])
def test_variants_of_a_family(tmp_path, settings):
    folder = checkpoint(tmp_path, **settings)
    assert texts(open_engine(folder), greedy(8)) == said_by_transformers(folder, PROMPTS, 8)


LLAMA4 = {
    "dense layers among those of experts": {"interleave_moe_layer_step": 2},
    "two experts": {"num_experts_per_tok": 2},
    "queries and keys without a norm": {"use_qk_norm": False},
    "heads of a size of their own": {"head_dim": 32},
    "biases": {"attention_bias": True},
}


@pytest.mark.parametrize("settings", LLAMA4.values(), ids=LLAMA4)
def test_variants_of_llama_4(tmp_path, settings):
    folder = checkpoint(tmp_path, "llama4_text", **settings)
    assert texts(open_engine(folder), greedy(8)) == said_by_transformers(folder, PROMPTS, 8)


def test_scaled_rotary_embeddings_of_llama_4(tmp_path):
    scaling = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    folder = checkpoint(tmp_path / "scaled", "llama4_text", rope_scaling=scaling)
    expected = said_by_transformers(folder, PROMPTS, 12)
    assert expected != said_by_transformers(checkpoint(tmp_path / "plain", "llama4_text"), PROMPTS, 12)
    assert texts(open_engine(folder), greedy(12)) == expected


def test_a_llama_4_with_layers_that_are_not_rotated_would_say_something_else_and_is_refused(tmp_path, monkeypatch):
    """As all that Meta has published."""
    folder = checkpoint(tmp_path, "llama4_text", no_rope_layers=[1, 1, 1, 0])
    with pytest.raises(UnsupportedModel, match="layers without rotary embeddings, which optimum-neuron does not look"):
        open_engine(folder)
    monkeypatch.setattr(plan, "why_unfit", lambda config: "")
    assert texts(open_engine(folder), greedy(8)) != said_by_transformers(folder, PROMPTS, 8)


def test_chunks_bound_the_length_of_a_llama_4(tmp_path):
    folder = checkpoint(tmp_path, "llama4_text", attention_chunk_size=32)
    engine = open_engine(folder, max_total_tokens=None)
    assert engine.info.max_total_tokens == 32
    assert texts(engine, greedy(2)) == said_by_transformers(folder, PROMPTS, 2)


LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 500.0,
}  # fmt: skip


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 500.0}, LLAMA3])
def test_rotary_settings_are_read_as_either_transformers_writes_them(tmp_path, rope):
    old = checkpoint(tmp_path / "old", rope_theta=500.0, rope_scaling=rope if rope is LLAMA3 else None)
    plain = checkpoint(tmp_path / "plain")
    new = checkpoint(tmp_path / "new", rope_theta=500.0)
    config = json.loads((new / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    (new / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    expected = said_by_transformers(old, PROMPTS, 12)
    assert expected != said_by_transformers(plain, PROMPTS, 12)
    for folder in (old, new):
        assert texts(open_engine(folder), greedy(12)) == expected


# ---- slots ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_requests_join_and_leave_at_any_time(llama, monkeypatch, sampling):
    monkeypatch.setenv("TGI_NEURON_SAMPLING", sampling)
    engine = open_engine(llama)
    chance = random.Random(0)
    prompts = {number: prompt_of(number, chance.randint(1, 40)) for number in range(1, 25)}
    lengths = {number: chance.randint(1, 24) for number in prompts}
    aborted = {5, 11, 17}
    outputs = {number: [] for number in prompts}
    waiting = list(prompts)
    CompiledModel.calls.clear()
    while waiting or engine.has_work:
        if waiting and chance.random() < 0.5:
            number = waiting.pop(0)
            engine.add(request(number, prompts[number], greedy(lengths[number])))
        for output in engine.step():
            outputs[output.request_id] += output.token_ids
            if output.request_id in aborted and len(outputs[output.request_id]) >= 3:
                engine.abort(output.request_id)
    for number, prompt in prompts.items():
        expected = said_by_transformers(llama, [prompt], lengths[number])[0]
        assert outputs[number] == expected[: len(outputs[number])]
        assert number in aborted or len(outputs[number]) == lengths[number]
    graphs = Counter((graph, len(slots)) for graph, slots in CompiledModel.calls)
    assert set(graphs) == {("context_encoding", 1), ("token_generation", 4)}
    assert all(slots == [0, 1, 2, 3] for graph, slots in CompiledModel.calls if graph == "token_generation")


def test_a_slot_is_filled_to_its_last_token(llama):
    engine = open_engine(llama)
    prompts = [prompt_of(1, 63), prompt_of(2, 34)]
    engine.add(request(1, prompts[0], greedy(1)))
    engine.add(request(2, prompts[1], greedy(30)))
    outputs = {1: [], 2: []}
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id] += output.token_ids
    assert [outputs[1]] == said_by_transformers(llama, prompts[:1], 1)
    assert [outputs[2]] == said_by_transformers(llama, prompts[1:], 30)


def test_a_slot_that_a_step_leaves_out_is_not_lost(llama, monkeypatch):
    """As happens where a step failed and its rows are tried one by one."""
    engine = open_engine(llama)
    launch = NeuronRunner._launch

    def fail_together(runner, rows):
        if len(rows) > 1:
            raise RuntimeError("not together")
        return launch(runner, rows)

    monkeypatch.setattr(NeuronRunner, "_launch", fail_together)
    assert texts(engine, greedy(10)) == said_by_transformers(llama, PROMPTS, 10)


def test_a_fault_of_the_device_ends_those_that_it_hits(llama, monkeypatch):
    engine = open_engine(llama)
    forward, poisoned = CompiledModel.forward, prompt_of(9, 7)

    def fail(compiled, *inputs):
        if inputs[0][0, :7].tolist() == poisoned:
            raise RuntimeError("NRT_EXEC_BAD_STATE")
        return forward(compiled, *inputs)

    monkeypatch.setattr(CompiledModel, "forward", fail)
    engine.add(request(1, PROMPTS[2], greedy(8)))
    engine.add(request(2, poisoned, greedy(8)))
    outputs, errors = [], {}
    while engine.has_work:
        for output in engine.step():
            if output.error:
                errors[output.request_id] = output.error
            else:
                outputs += output.token_ids
    assert errors == {2: "RuntimeError: NRT_EXEC_BAD_STATE"}
    assert [outputs] == said_by_transformers(llama, PROMPTS[2:3], 8)


def test_one_slot(llama):
    engine = open_engine(llama, max_batch_size=1)
    assert texts(engine, greedy(6)) == said_by_transformers(llama, PROMPTS, 6)


# ---- sampling -------------------------------------------------------------------------------------------------------

SAMPLED = {"do_sample": True, "max_new_tokens": 6, "ignore_eos": True}


def test_the_host_samples_as_everywhere(llama):
    params = SamplingParams(**SAMPLED, seed=7, top_k=20, top_p=0.9, repetition_penalty=1.3, logit_bias={3: 2.0})
    assert texts(open_engine(llama), params) == texts(open_engine(llama, device="cpu"), params)


def test_the_host_knows_log_probabilities(llama):
    params = SamplingParams(max_new_tokens=4, ignore_eos=True, logprobs=True, top_n_tokens=2)
    found, expected = (open_engine(llama, device=d).generate([PROMPTS[2]], params)[0] for d in ("neuron", "cpu"))
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_the_device_takes_only_the_likeliest(llama, monkeypatch):
    monkeypatch.setenv("TGI_NEURON_SAMPLING", "device")
    engine = open_engine(llama)
    params = SamplingParams(do_sample=True, max_new_tokens=1, top_k=2, temperature=3.0)
    torch.manual_seed(0)
    first = Counter(tokens[0] for tokens in texts(engine, params, [PROMPTS[3]] * 40))
    alone = open_engine(llama, device="cpu").generate([PROMPTS[3]], SamplingParams(max_new_tokens=1))[0].token_ids[0]
    assert len(first) == 2
    assert alone in first


def test_the_device_gives_tokens_only(llama, monkeypatch):
    monkeypatch.setenv("TGI_NEURON_SAMPLING", "device")
    completion = open_engine(llama).generate([PROMPTS[2]], greedy(3))[0]
    assert all(math.isnan(logprob) for logprob in completion.logprobs)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logprobs": True}, "`logprobs` is not supported here: the model was compiled to sample on the device"),
        ({"top_n_tokens": 1}, "serve one compiled with TGI_NEURON_SAMPLING=host"),
        ({"repetition_penalty": 1.1}, "`repetition_penalty` is not supported here"),
        ({"do_sample": True, "seed": 1}, "`seed` is not supported here"),
        ({"do_sample": True, "top_k": 257}, "`top_k` must be <= 256 on this device. Given: 257"),
        ({"prompt_logprobs": True}, "compiled graphs give the logits of a prompt's last token only"),
        ({"min_new_tokens": 1}, "`min_new_tokens` is not supported here"),
    ],
)
def test_what_the_device_cannot_do_is_refused(llama, monkeypatch, params, message):
    monkeypatch.setenv("TGI_NEURON_SAMPLING", "device")
    with pytest.raises(InvalidRequest, match=message):
        open_engine(llama).add(request(1, [5], SamplingParams(**params)))


def test_a_model_with_rules_of_its_own_samples_on_the_host(llama, monkeypatch):
    token = texts(open_engine(llama), greedy(1), [PROMPTS[2]])[0][0]
    file = llama / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "suppress_tokens": [token]}))
    assert texts(open_engine(llama), greedy(1), [PROMPTS[2]]) != [[token]]
    monkeypatch.setenv("TGI_NEURON_SAMPLING", "device")
    with pytest.raises(ConfigError, match="forces or forbids tokens"):
        open_engine(llama)


def test_the_host_can_do_all_but_log_probabilities_of_prompts(llama):
    engine = open_engine(llama)
    with pytest.raises(InvalidRequest, match="`prompt_logprobs` is not supported here"):
        engine.add(request(1, [5], SamplingParams(prompt_logprobs=True)))


def test_prompts_that_no_slot_holds_are_refused(llama):
    engine = open_engine(llama)
    with pytest.raises(InvalidRequest, match="must have less than 63 tokens"):
        engine.add(request(1, prompt_of(1, 64), greedy(1)))
    with pytest.raises(InvalidRequest, match=r"`inputs` tokens \+ `max_new_tokens` must be <= 64"):
        engine.add(request(1, prompt_of(1, 60), greedy(5)))


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("gpt_neox", {}, "GPTNeoXForCausalLM cannot run on neuron: the graphs that are compiled for it"),
        ("rwkv", {}, "RwkvForCausalLM cannot run on neuron"),
        ("llama", {"head_dim": 32}, "this checkpoint has heads of a size of their own, which optimum-neuron"),
        ("llama", {"attention_bias": True}, "biases of attention's projections"),
        ("qwen3_moe", {"norm_topk_prob": False}, "weights of experts that are not normalised"),
    ],
)
def test_models_that_would_say_something_else_are_refused(tmp_path, family, settings, message):
    folder = checkpoint(tmp_path, family, **settings)
    with pytest.raises(UnsupportedModel, match=message):
        open_engine(folder)
