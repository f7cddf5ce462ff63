"""Decoders without a family file: transformers' own model on the paged cache."""

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import UnsupportedModel
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


@torch.inference_mode()
@pytest.mark.parametrize("budget", [None, 8])
def test_greedy_tokens_equal_transformers_own(reference, budget):
    model, folder = reference
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32", max_batch_prefill_tokens=budget))
    assert "nobody" in engine.info.fallback or "no installed plugin" in engine.info.fallback
    found = engine.generate(PROMPTS, SamplingParams(max_new_tokens=16, ignore_eos=True))
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :]
        assert completion.token_ids == expected.tolist()


def test_a_model_whose_attention_cannot_be_replaced_is_refused_by_name(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_layers": 2, "num_heads": 4}
    types = {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neo", **sizes, **types))
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(UnsupportedModel, match="cannot"):
        Engine(EngineConfig(model_id=str(tmp_path), device="cpu"))
