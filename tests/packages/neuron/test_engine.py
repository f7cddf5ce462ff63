"""The whole engine on compiled graphs: token for token what transformers says."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

#: what tiny configurations lack of the families' real ones
SETTINGS = {"mixtral": {"head_dim": 16}, "qwen3_moe": {"norm_topk_prob": True}}
FAMILIES = ("granite", "llama", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe")
PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 2, 5, 30, 17, 9))]
GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)


def checkpoint(folder, family="llama", **settings):
    return make_checkpoint(folder, family, **{**SETTINGS.get(family, {}), **settings})


def open_engine(folder, **wishes):
    given = {"device": "neuron", "dtype": "float32", "max_batch_size": 4, "max_total_tokens": 64, **wishes}
    return Engine(EngineConfig(model_id=str(folder), **given))


@torch.inference_mode()
def said_by_transformers(folder, prompts, count):
    model = AutoModelForCausalLM.from_pretrained(folder)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(count):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        outputs.append(ids[0, len(prompt) :].tolist())
    return outputs


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(tmp_path, monkeypatch, family, sampling):
    monkeypatch.setenv("TGI_NEURON_SAMPLING", sampling)
    folder = checkpoint(tmp_path, family)
    engine = open_engine(folder)
    assert engine.info.device == "neuron"
    outputs = [completion.token_ids for completion in engine.generate(PROMPTS, GREEDY)]
    assert outputs == said_by_transformers(folder, PROMPTS, 12)
