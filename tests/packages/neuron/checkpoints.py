"""Tiny checkpoints of the families, engines on them, and what transformers says."""

import torch
from transformers import AutoModelForCausalLM

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing import tiny
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

tiny.FAMILIES["smollm3"] = {**tiny.FAMILIES["llama"], "num_hidden_layers": 4, "pad_token_id": 0}
tiny.FAMILIES["llama4_text"] = {
    **tiny.FAMILIES["llama"], "num_hidden_layers": 4, "head_dim": 16, "pad_token_id": 0, "num_local_experts": 4,
    "intermediate_size_mlp": 96, "attention_chunk_size": 512,
}  # fmt: skip
#: what tiny configurations lack of the families' real ones
SETTINGS = {"qwen3_moe": {"norm_topk_prob": True}, "llama4_text": {"no_rope_layers": [1] * 4}}


def checkpoint(folder, family="llama", **settings):
    return make_checkpoint(folder, family, **{**SETTINGS.get(family, {}), **settings})


def open_engine(folder, **wishes):
    given = {"device": "neuron", "dtype": "float32", "max_batch_size": 4, "max_total_tokens": 64, **wishes}
    return Engine(EngineConfig(model_id=str(folder), **given))


def prompt_of(seed, length):
    return [(7 * seed + j * j) % VOCABULARY for j in range(length)]


def greedy(count):
    return SamplingParams(max_new_tokens=count, ignore_eos=True)


def request(number, prompt, params):
    return Request(id=number, prompt_ids=prompt, params=params)


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
