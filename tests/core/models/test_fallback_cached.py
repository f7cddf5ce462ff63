"""Models with a cache of their own, against transformers' generate: state-space models, hybrids, encoder-decoders."""

import random

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

BATCHING = {
    "mamba": "padded to the longest",
    "mamba2": "padded to the longest",
    "falcon_mamba": "padded to the longest",
    "rwkv": "one by one",  # transformers' own mixes up the sequences of a batch
    "gpt_neo": "padded to the longest",
    "xglm": "padded to the longest",
    "jamba": "padded to the longest",
    "bart": "padded to the longest",
    "pegasus": "padded to the longest",
    "m2m_100": "padded to the longest",
}
PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 9, 70, 9, 33, 200))]
STEPS = 40


@pytest.fixture(scope="module", params=BATCHING)
def folder(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / request.param, request.param)


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def expected(reference):
    return [greedy(reference, prompt, STEPS) for prompt in PROMPTS]


@pytest.fixture
def engine(folder):
    return Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32"))


@torch.inference_mode()
def greedy(model, prompt, length):
    """Tokens and their log-probabilities."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": length, "do_sample": False, "num_beams": 1, "eos_token_id": None, "pad_token_id": 0}
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), output_logits=True, return_dict_in_generate=True, **settings
    )
    tokens = output.sequences[0, -length:]
    logprobs = torch.cat(output.logits).log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    return tokens.tolist(), logprobs


def drain(engine, outputs=None):
    outputs = {} if outputs is None else outputs
    while engine.has_work:
        step(engine, outputs)
    return outputs


def step(engine, outputs):
    for output in engine.step():
        assert not output.error
        outputs.setdefault(output.request_id, []).extend(output.token_ids)


def test_says_how_it_runs_and_what_that_costs(engine, folder):
    assert BATCHING[folder.name] in engine.info.fallback
    assert "own cache" in engine.info.fallback
    assert "bytes" in engine.info.fallback


def test_greedy_tokens_of_ragged_prompts(engine, expected):
    found = engine.generate(PROMPTS, SamplingParams(max_new_tokens=STEPS, ignore_eos=True))
    for completion, (tokens, logprobs) in zip(found, expected, strict=True):
        assert completion.token_ids == tokens
        torch.testing.assert_close(torch.tensor(completion.logprobs), logprobs, rtol=1e-4, atol=1e-4)


def test_requests_join_and_leave_at_random(engine, expected):
    rng, outputs, lengths = random.Random(0), {}, {}
    for number in range(30):
        which = rng.randrange(len(PROMPTS))
        lengths[number] = rng.randint(1, STEPS)
        params = SamplingParams(max_new_tokens=lengths[number], ignore_eos=True)
        engine.add(Request(id=100 * number + which, prompt_ids=PROMPTS[which], params=params))
        for _ in range(rng.randrange(5)):
            step(engine, outputs)
        if rng.random() < 0.2 and outputs:
            engine.abort(rng.choice(list(outputs)))
    drain(engine, outputs)
    finished = 0
    for key, tokens in outputs.items():
        number, which = divmod(key, 100)
        assert tokens == expected[which][0][: len(tokens)]
        finished += len(tokens) == lengths[number]
    assert finished > 20


def test_preempted_sequences_go_on(folder, expected):
    limits = {"max_batch_total_tokens": 448, "max_total_tokens": 300}
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32", **limits))
    for number, prompt in enumerate(PROMPTS):
        engine.add(Request(id=number, prompt_ids=prompt, params=SamplingParams(max_new_tokens=STEPS, ignore_eos=True)))
    outputs = drain(engine)
    assert [outputs[number] for number in range(len(PROMPTS))] == [tokens for tokens, _ in expected]


def test_a_seed_gives_the_same_tokens_in_any_company(engine):
    params = SamplingParams(max_new_tokens=12, do_sample=True, seed=7, temperature=0.8, top_p=0.9, ignore_eos=True)
    alone = engine.generate([PROMPTS[1]], params)[0].token_ids
    together = [completion.token_ids for completion in engine.generate(PROMPTS, params)]
    assert together[1] == alone
    assert len({tuple(tokens) for tokens in together}) > 1


@torch.inference_mode()
def test_prompt_logprobs(engine, reference):
    asked = PROMPTS[2]
    if reference.config.is_encoder_decoder:
        start = torch.tensor([[reference.config.decoder_start_token_id]])
        output, prompt = reference(torch.tensor([asked]), decoder_input_ids=start), []
    else:
        output, prompt = reference(torch.tensor([asked])), asked
    logprobs = output.logits[0].float().log_softmax(-1)
    wanted = logprobs[:-1].gather(-1, torch.tensor(prompt[1:], dtype=torch.int64)[:, None]).squeeze(-1)
    engine.add(Request(id=1, prompt_ids=PROMPTS[1], params=SamplingParams(max_new_tokens=4)))
    params = SamplingParams(max_new_tokens=3, prompt_logprobs=True, top_n_tokens=2)
    engine.add(Request(id=2, prompt_ids=asked, params=params))
    outputs = [output for _ in range(3) for output in engine.step() if output.request_id == 2]
    assert outputs[0].prompt_logprobs[0] is None
    torch.testing.assert_close(torch.tensor(outputs[0].prompt_logprobs[1:]), wanted, rtol=1e-4, atol=1e-4)
    assert outputs[0].token_ids == [logprobs[-1].argmax().item()]
    assert len(outputs[0].top_logprobs[0]) == 2
