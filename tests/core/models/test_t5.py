"""Encoder-decoders against transformers: tokens and log-probabilities, through the whole engine."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import InvalidRequest, UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.layers.relative_bias import bucket_of
from tgi_core.model_config import parse_model_config
from tgi_core.models.t5 import T5ForConditionalGeneration
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

CHECKPOINTS = {
    "t5 v1.0": ("t5", {"feed_forward_proj": "relu"}),
    "t5 v1.1, untied": ("t5", {"scale_decoder_outputs": False, "untied": True}),
    "t5, untied and scaled, as transformers 4 wrote it": ("t5", {"untied": True, "old": True, "d_kv": 24}),
    "t5, other sizes": (
        "t5",
        {"num_heads": 3, "d_kv": 40, "num_layers": 3, "num_decoder_layers": 2, "relative_attention_num_buckets": 12,
         "relative_attention_max_distance": 30, "feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-4},
    ),
    "mt5": ("mt5", {"untied": True}),
    "umt5": ("umt5", {"d_kv": 32}),
}  # fmt: skip
PROMPTS = [
    [(7 * i + j * j + 3) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 5, 33, 200, 64, 40))
]
LENGTH = 70


def make(folder, family, *, untied=False, old=False, **options):
    folder = make_checkpoint(folder, family, **options)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    if untied:
        generator = torch.Generator().manual_seed(1)
        tensors["lm_head.weight"] = torch.randn(tensors["shared.weight"].shape, generator=generator) * 0.15
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if old:
        for name in ("scale_decoder_outputs", "is_encoder_decoder"):
            config.pop(name, None)
        config["tie_word_embeddings"] = False
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def folder(request, tmp_path_factory):
    family, options = request.param
    return make(tmp_path_factory.mktemp("checkpoint"), family, **options)


def load(folder, dtype=torch.float32):
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture(scope="module")
def expected(folder):
    model = load(folder)
    return [greedy(model, prompt, LENGTH) for prompt in PROMPTS]


@torch.inference_mode()
def greedy(model, prompt, length):
    """Tokens and their log-probabilities."""
    tokens = torch.tensor([prompt])
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = out.sequences[0, 1:].tolist()
    logprobs = [logits[0].float().log_softmax(-1)[token].item() for token, logits in zip(ids, out.logits, strict=True)]
    return ids, logprobs


def make_engine(folder, **settings):
    return Engine(EngineConfig(model_id=str(folder), device="cpu", **{"dtype": "float32", **settings}))


def run(engine, prompts, length, **params):
    """(ids, log-probabilities) of each prompt, and how many sequences were preempted."""
    params = SamplingParams(max_new_tokens=length, ignore_eos=True, **params)
    for number, prompt in enumerate(prompts):
        engine.add(Request(id=number, prompt_ids=prompt, params=params))
    found = [([], []) for _ in prompts]
    preemptions = 0
    while engine.has_work:
        for output in engine.step():
            assert not output.error
            found[output.request_id][0].extend(output.token_ids)
            found[output.request_id][1].extend(output.logprobs)
        preemptions += engine.stats.preemptions
    assert engine.scheduler.kv.pool.counts().held == 0
    return found, preemptions


def check(found, expected):
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    for (_, logprobs), (_, right) in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(right), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="all at once"),
        pytest.param({"max_batch_prefill_tokens": 40, "max_batch_size": 4}, id="a few at a time"),
        pytest.param({"disable_custom_kernels": True}, id="reference kernels"),
        pytest.param({"kernels": {"attention": "torch"}}, id="torch attention"),
    ],
)
def test_greedy_tokens(folder, expected, settings):
    assert len({token for ids, _ in expected for token in ids}) > 10  # it does say something
    check(run(make_engine(folder, **settings), PROMPTS, LENGTH)[0], expected)


def test_preempted_and_resumed(folder, expected):
    engine = make_engine(folder, max_batch_total_tokens=416, max_total_tokens=300, max_input_tokens=200)
    found, preemptions = run(engine, PROMPTS[2:], LENGTH)
    assert preemptions > 0
    check(found, expected[2:])


def test_sources_longer_than_any_distance_that_has_a_bucket(tmp_path):
    folder = make(tmp_path, "t5")
    prompts = [[(5 * j * j + j) % VOCABULARY for j in range(700)]]
    engine = make_engine(folder, max_total_tokens=1000, max_input_tokens=800)
    check(run(engine, prompts, 200)[0], [greedy(load(folder), prompts[0], 200)])


def test_bfloat16_is_as_near_as_its_precision(tmp_path):
    folder = make(tmp_path, "t5")
    right = load(folder)
    engine = make_engine(folder, dtype="bfloat16")
    (found, *_), _ = run(engine, [PROMPTS[3]], 24)
    ids = torch.tensor([[0, *found[0]]])
    with torch.inference_mode():
        logprobs = right(input_ids=torch.tensor([PROMPTS[3]]), decoder_input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
    of_found = logprobs.gather(1, ids[0, 1:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor(found[1]), of_found, rtol=0, atol=0.15)
    assert (logprobs.max(1).values - of_found).max() < 0.15


def test_start_of_the_decoder_and_prompt_logprobs(tmp_path):
    folder = make(tmp_path, "t5", decoder_start_token_id=5)
    engine = make_engine(folder)
    assert engine.info.decoder_start_ids == [5]
    assert not engine.scheduler.kv.prefix_caching
    check(run(engine, PROMPTS[:3], 12)[0], [greedy(load(folder), prompt, 12) for prompt in PROMPTS[:3]])
    engine.add(Request(id=1, prompt_ids=PROMPTS[2], params=SamplingParams(max_new_tokens=1, prompt_logprobs=True)))
    assert engine.step()[0].prompt_logprobs == [None]


def test_sources_are_bounded_by_what_the_model_knows(tmp_path):
    engine = make_engine(make(tmp_path, "t5", n_positions=64))
    assert (engine.info.max_input_tokens, engine.info.max_total_tokens) == (64, 128)
    with pytest.raises(InvalidRequest, match="less than 64 tokens"):
        engine.add(Request(id=1, prompt_ids=[3] * 65))


def test_repetition_penalty_counts_the_decoders_tokens_as_transformers_does(tmp_path):
    folder = make(tmp_path, "t5")
    model, tokens = load(folder), torch.tensor([PROMPTS[2]])
    right = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=24, do_sample=False, eos_token_id=None,
        repetition_penalty=1.7,
    )[0, 1:].tolist()  # fmt: skip
    (found, *_), _ = run(make_engine(folder), [PROMPTS[2]], 24, repetition_penalty=1.7)
    assert found[0] == right


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (12, 30), (8, 1000)])
def test_buckets_are_those_of_transformers(buckets, max_distance, both_ways):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-2000, 2000 if both_ways else 1)
    expected = T5Attention._relative_position_bucket(
        distances, bidirectional=both_ways, num_buckets=buckets, max_distance=max_distance
    )
    assert torch.equal(bucket_of(distances, buckets, max_distance, both_ways), expected)
    far = bucket_of(torch.tensor([-max_distance, max_distance if both_ways else 0]), buckets, max_distance, both_ways)
    assert far.tolist() == [expected[0], expected[-1]]


@pytest.mark.parametrize(("buckets", "max_distance"), [(2, 128), (32, 32)])
def test_buckets_that_cannot_be_are_refused(tmp_path, buckets, max_distance):
    folder = make(tmp_path, "t5")
    config = json.loads((folder / "config.json").read_text())
    config |= {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": max_distance}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="buckets, which cannot be"):
        make_engine(folder)


def test_tensors_that_old_checkpoints_repeat_are_not_missed(tmp_path, caplog):
    folder = make(tmp_path, "t5")
    tensors = load_file(folder / "model.safetensors")
    for stack in ("encoder", "decoder"):
        tensors[f"{stack}.embed_tokens.weight"] = tensors["shared.weight"].clone()
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(32, 4)
    save_file(tensors, folder / "model.safetensors")
    make_engine(folder)
    assert "not used" not in caplog.text


def test_float16_is_refused(tmp_path):
    folder = make(tmp_path, "t5")
    config = parse_model_config(json.loads((folder / "config.json").read_text()))
    build = BuildContext(kernels=None, linear=None, attention=None, dtype=torch.float16)
    with pytest.raises(UnsupportedModel, match="exceeds the range of float16"):
        T5ForConditionalGeneration(config, build)


@pytest.mark.parametrize("seed", range(2))
def test_random_arrivals_and_aborts_leave_the_others_what_they_would_be_alone(tmp_path, seed):
    folder = make(tmp_path, "t5")
    rng = random.Random(seed)
    engine = make_engine(folder, max_batch_total_tokens=512, max_total_tokens=256, max_batch_size=6)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.choice([1, 31, 32, 33, 100]))] for _ in range(24)]
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    alone = [completion.token_ids for completion in (engine.generate([prompt], params)[0] for prompt in prompts)]
    found, aborted = {}, set()

    def step():
        for output in engine.step():
            assert not output.error
            found.setdefault(output.request_id, []).extend(output.token_ids)
        engine.scheduler.kv.pool.check()

    for number, prompt in enumerate(prompts):
        engine.add(Request(id=number, prompt_ids=prompt, params=params))
        for _ in range(rng.randrange(4)):
            step()
        if rng.random() < 0.2 and engine.abort(victim := rng.randrange(number + 1)):
            aborted.add(victim)
    while engine.has_work:
        step()
    assert {number: found[number] for number in found if number not in aborted} == {
        number: tokens for number, tokens in enumerate(alone) if number not in aborted
    }
