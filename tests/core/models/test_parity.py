"""Every family of core against transformers: logits, and greedy tokens through the whole engine."""

import json

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import UnsupportedModel
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

STEPS = 64
PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 5, 33, 90))]


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def expected(reference):
    """(greedy tokens, their log-probabilities) of each prompt."""
    tokens = [greedy(reference, prompt, STEPS) for prompt in PROMPTS]
    return [
        (found, logprobs_of(reference, prompt + found)[len(prompt) - 1 :])
        for prompt, found in zip(PROMPTS, tokens, strict=True)
    ]


@torch.inference_mode()
def logprobs_of(model, tokens):
    """Of every token but the first: [length - 1]."""
    logprobs = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    return logprobs[:-1].gather(-1, torch.tensor(tokens[1:]).unsqueeze(-1)).squeeze(-1)


def check(outputs, expected):
    for request, (tokens, logprobs) in zip(outputs, expected, strict=True):
        assert [token for output in request for token in output.token_ids] == tokens
        found = torch.tensor([logprob for output in request for logprob in output.logprobs])
        torch.testing.assert_close(found, logprobs, rtol=1e-4, atol=1e-4)


class CountingEngine(Engine):
    """Remembers how often it preempted."""

    preemptions = 0

    def step(self):
        outputs = super().step()
        self.preemptions += self.stats.preemptions
        return outputs


def make_engine(folder, *, dtype="float32", **settings):
    return CountingEngine(EngineConfig(model_id=str(folder), device="cpu", dtype=dtype, **settings))


@torch.inference_mode()
def greedy(model, prompt, length):
    tokens = torch.tensor([prompt])
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def run(engine, prompts, length, **params):
    params = SamplingParams(max_new_tokens=length, ignore_eos=True, **params)
    for number, prompt in enumerate(prompts, 1):
        engine.add(Request(id=number, prompt_ids=prompt, params=params))
    outputs = {number: [] for number in range(1, len(prompts) + 1)}
    while engine.has_work:
        for output in engine.step():
            assert not output.error
            outputs[output.request_id].append(output)
    return list(outputs.values())


def tokens_of(outputs):
    return [[token for output in request for token in output.token_ids] for request in outputs]


SETTINGS = {
    "whole prompts": {},
    "chunked": {"max_batch_prefill_tokens": 7},
    "reference kernels": {"disable_custom_kernels": True},
    "torch attention, chunked": {"kernels": {"attention": "torch"}, "max_batch_prefill_tokens": 20},
    "preempted and resumed": {"max_total_tokens": 160, "max_batch_total_tokens": 224, "prefix_caching": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_tokens(folder, reference, expected, name):
    if name.startswith("torch") and getattr(reference.config, "attn_logit_softcapping", None):
        pytest.skip("PyTorch's attention has no soft cap")
    engine = make_engine(folder, **SETTINGS[name])
    check(run(engine, PROMPTS, STEPS), expected)
    if name.startswith("preempted"):
        assert engine.preemptions


def test_prefix_cache_hits_change_nothing(folder, expected):
    engine = make_engine(folder)
    first, again = (run(engine, [PROMPTS[3]], STEPS)[0] for _ in range(2))
    check([first, again], [expected[3]] * 2)
    assert again[0].cached_tokens == 64


@torch.inference_mode()
def test_bfloat16_errs_no_more_than_transformers(folder, reference):
    from transformers import AutoModelForCausalLM

    prompt = PROMPTS[3]
    exact = logprobs_of(reference, prompt)[: len(prompt) - 1]
    theirs = logprobs_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval(), prompt)
    engine = make_engine(folder, dtype="bfloat16")
    ours = torch.tensor(run(engine, [prompt], 1, prompt_logprobs=True)[0][0].prompt_logprobs[1:])
    error, allowed = ((found[: len(exact)] - exact).square().mean().sqrt() for found in (ours, theirs))
    assert error <= 1.5 * allowed + 0.01


@torch.inference_mode()
def test_prompt_logprobs(folder, reference):
    prompt = PROMPTS[2]
    expected = logprobs_of(reference, prompt)
    engine = make_engine(folder, max_batch_prefill_tokens=8)
    outputs = run(engine, [prompt], 1, prompt_logprobs=True, top_n_tokens=3)[0]
    assert outputs[0].prompt_logprobs[0] is None
    torch.testing.assert_close(torch.tensor(outputs[0].prompt_logprobs[1:]), expected, rtol=1e-4, atol=1e-4)
    best = reference(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).topk(3)
    assert [entry.id for entry in outputs[0].top_logprobs[0]] == best.indices.tolist()
    torch.testing.assert_close(
        torch.tensor([entry.logprob for entry in outputs[0].top_logprobs[0]]), best.values, rtol=1e-4, atol=1e-4
    )


def test_santacoder_as_first_published(tmp_path):
    """GPT-2's layout with queries apart from keys and values; GPTBigCode holds the same model in one matrix."""
    from safetensors.torch import load_file, save_file

    plain = make_checkpoint(tmp_path / "plain", "gpt_bigcode")
    custom = make_checkpoint(tmp_path / "custom", "gpt_bigcode")
    tensors = load_file(custom / "model.safetensors")
    hidden = 64
    for name in [name for name in tensors if ".c_attn." in name]:
        rows = tensors.pop(name)
        transpose = (lambda part: part.T.contiguous()) if rows.dim() == 2 else torch.clone
        tensors[name.replace("c_attn", "q_attn")] = transpose(rows[:hidden])
        tensors[name.replace("c_attn", "kv_attn")] = transpose(rows[hidden:])
    for name, tensor in tensors.items():
        if name.endswith(("c_proj.weight", "c_fc.weight")):
            tensors[name] = tensor.mT.contiguous()
    save_file(tensors, custom / "model.safetensors")
    config = json.loads((custom / "config.json").read_text())
    del config["multi_query"]
    config |= {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadCustomModel"], "attention_head_type": "multiquery",
    }  # fmt: skip
    (custom / "config.json").write_text(json.dumps(config))
    assert tokens_of(run(make_engine(custom), PROMPTS, 12)) == tokens_of(run(make_engine(plain), PROMPTS, 12))


FALCON = {
    "architectures": ["RWForCausalLM"], "bias": False, "alibi": False, "parallel_attn": True, "hidden_size": 64,
    "n_head": 4, "n_layer": 2, "layer_norm_epsilon": 1e-5, "vocab_size": VOCABULARY, "torch_dtype": "bfloat16",
}  # fmt: skip
FIRST_CONFIGS = {  # name -> (family, what makes the same model now, config.json as it was published)
    "bloom-560m": (
        "bloom",
        {},
        {
            "architectures": ["BloomForCausalLM"],
            "model_type": "bloom",
            "n_embed": 64,
            "n_inner": None,
            "n_layer": 2,
            "num_attention_heads": 4,
            "layer_norm_epsilon": 1e-5,
            "vocab_size": VOCABULARY,
        },
    ),
    "falcon-7b": ("falcon", {}, {**FALCON, "model_type": "RefinedWebModel", "multi_query": True}),
    "falcon-40b": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {**FALCON, "model_type": "RefinedWeb", "n_head_kv": 2},
    ),
    "no architectures": (
        "gpt_neox",
        {},
        {
            "model_type": "gpt_neox",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "rotary_pct": 0.5,
            "rotary_emb_base": 10000,
            "vocab_size": VOCABULARY,
        },
    ),
}


@pytest.mark.parametrize("name", FIRST_CONFIGS)
def test_configs_as_first_published(tmp_path, name):
    from transformers import AutoModelForCausalLM

    family, now, config = FIRST_CONFIGS[name]
    folder = make_checkpoint(tmp_path, family, **now)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = [greedy(reference, prompt, 12) for prompt in PROMPTS]
    (folder / "config.json").write_text(json.dumps(config))
    assert tokens_of(run(make_engine(folder), PROMPTS, 12)) == expected


def test_mpt_with_learned_positions_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path, "mpt", attn_config={"alibi": False})
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"transformer.wpe.weight": torch.zeros(512, 64)}, folder / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="learned positions"):
        make_engine(folder)


def test_a_setting_of_the_wrong_kind_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path, "mpt")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_config": "alibi"}))
    with pytest.raises(UnsupportedModel, match=r"MptForCausalLM cannot be made of this config\.json \(AttributeError"):
        make_engine(folder)


@pytest.mark.parametrize(("family", "old"), [("mixtral", "block_sparse_moe"), ("qwen2_moe", "mlp")])
def test_fused_experts(tmp_path, family, old):
    """All experts of a layer in one tensor, as transformers 5 holds them in memory."""
    from safetensors.torch import load_file, save_file

    plain, fused = (make_checkpoint(tmp_path / name, family) for name in ("plain", "fused"))
    tensors = load_file(fused / "model.safetensors")
    gate, up, down = ("w1", "w3", "w2") if old != "mlp" else ("gate_proj", "up_proj", "down_proj")
    for name in [name for name in tensors if name.endswith(f".{old}.gate.weight")]:
        place = name.removesuffix("gate.weight")
        new = place.replace(old, "mlp")
        parts = {
            part: torch.stack([tensors.pop(f"{place}experts.{i}.{part}.weight") for i in range(len(tensors[name]))])
            for part in (gate, up, down)
        }
        tensors[f"{new}gate.weight"] = tensors.pop(name)
        tensors[f"{new}experts.gate_up_proj"] = torch.cat((parts[gate], parts[up]), dim=1)
        tensors[f"{new}experts.down_proj"] = parts[down]
    save_file(tensors, fused / "model.safetensors")
    assert tokens_of(run(make_engine(fused), PROMPTS, 12)) == tokens_of(run(make_engine(plain), PROMPTS, 12))


FACTORS = [1.0 + i / 8 for i in range(8)]
OLD_CONFIGS = {  # model_type -> what transformers 4 wrote in place of `rope_parameters` and `layer_types`
    "gemma": {"hidden_act": "gelu", "hidden_activation": None, "rope_theta": 5000.0},
    "gemma2": {"rope_theta": 5000.0, "cache_implementation": "hybrid"},
    "gemma3_text": {
        "rope_theta": 50000.0,
        "rope_local_base_freq": 700.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    },
    "phi3": {
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 512,
        "rope_scaling": {"type": "longrope", "short_factor": FACTORS, "long_factor": [2 * f for f in FACTORS]},
    },
    "stablelm": {"rope_theta": 5000, "rope_scaling": None, "partial_rotary_factor": 0.5},
    "cohere": {"rope_theta": 5000.0},
    "qwen2_moe": {"rope_theta": 5000.0, "sliding_window": 16, "max_window_layers": 1},
}


@pytest.mark.parametrize("family", OLD_CONFIGS)
def test_configs_of_transformers_4(tmp_path, family):
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint(tmp_path, family)
    config = json.loads((folder / "config.json").read_text())
    config = {key: config[key] for key in config if key not in ("rope_parameters", "layer_types", "logit_scale")}
    (folder / "config.json").write_text(json.dumps(config | OLD_CONFIGS[family]))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = [greedy(reference, prompt, 12) for prompt in PROMPTS]
    assert tokens_of(run(make_engine(folder), PROMPTS, 12)) == expected
