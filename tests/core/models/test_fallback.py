"""Decoders without a family file: transformers' own model on the paged cache."""

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, write_tokenizer

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODEL_TYPES = ["olmo", "glm", "nemotron", "smollm3"]
PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 9, 70))]


@pytest.fixture(scope="module", params=MODEL_TYPES)
def reference(request, tmp_path_factory):
    """A tiny random model of transformers' and the folder that it is saved in."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **SMALL)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model, folder


@pytest.mark.parametrize("budget", [None, 8])
def test_greedy_tokens_equal_transformers_own(reference, budget):
    model, folder = reference
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32", max_batch_prefill_tokens=budget))
    assert "no installed plugin" in engine.info.fallback
    assert "on the paged cache" in engine.info.fallback
    assert_greedy_tokens_are_equal(engine, model)


@torch.inference_mode()
def assert_greedy_tokens_are_equal(engine, model):
    found = engine.generate(PROMPTS, SamplingParams(max_new_tokens=16, ignore_eos=True))
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :]
        assert completion.token_ids == expected.tolist()


@pytest.mark.parametrize(
    ("model_type", "options", "reason"),
    [
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16}, "attention with s_aux"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "more of the past than keys and values"),
        ("biogpt", {}, "cannot replace BioGptForCausalLM's attention"),
    ],
)
def test_what_the_paged_cache_cannot_hold_keeps_a_cache_of_its_own(tmp_path, model_type, options, reason):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL, **options)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    engine = Engine(EngineConfig(model_id=str(tmp_path), device="cpu", dtype="float32"))
    assert reason in engine.info.fallback
    assert_greedy_tokens_are_equal(engine, model)
