"""`--deterministic`: what a request gets is, bit by bit, the same whatever else the engine does."""

import pytest
import torch

from tgi_core import Engine, builtin
from tgi_core.config import EngineConfig
from tgi_core.cpu import native
from tgi_core.errors import ConfigError, UnsupportedKernel
from tgi_core.kernels import select
from tgi_core.kernels.ops import KernelQuery
from tgi_core.kernels.registry import KERNELS
from tgi_core.kernels.select import select_kernels
from tgi_core.plugins.manager import load_plugins
from tgi_core.plugins.specs import KernelSpec
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint

needs_native = pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable() or "native kernels are there")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
FAMILIES = ("llama", "mistral", "gpt_neox", "bloom", "opt", "falcon", "gemma2", "mixtral", "qwen2_moe", "gpt_bigcode")
TOKENS = 40
PROMPTS = [[(13 * i + 5 * j * j) % 380 + 3 for j in range(3 + 23 * i)] for i in range(6)]
WISHES = [
    SamplingParams(max_new_tokens=TOKENS, ignore_eos=True),
    SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, do_sample=True, temperature=0.8, top_p=0.9, seed=1),
    SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, do_sample=True, typical_p=0.8, seed=2),
    SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, top_n_tokens=4, prompt_logprobs=True),
    SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, repetition_penalty=1.2, frequency_penalty=0.1),
    SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, do_sample=True, top_k=20, seed=3, top_n_tokens=2),
]
REQUESTS = [Request(id=number, prompt_ids=PROMPTS[number], params=WISHES[number]) for number in range(6)]


def engine_of(folder, device="cpu", **wishes):
    return Engine(EngineConfig(model_id=str(folder), device=device, deterministic=True, **wishes))


def run(engine, requests):
    """Everything that each request is told of its tokens, and how often one was preempted."""
    found, preemptions = {request.id: [] for request in requests}, 0
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            assert not output.error
            told = (output.token_ids, output.logprobs, output.top_logprobs, output.prompt_logprobs)
            found[output.request_id].append(told)
        preemptions += engine.stats.preemptions
    return found, preemptions


def check(folder, **wishes):
    roomy = engine_of(folder, prefix_caching=False, **wishes)
    expected = alone(roomy)
    tight = engine_of(folder, max_batch_total_tokens=224, max_total_tokens=224, max_batch_prefill_tokens=40, **wishes)
    found, preemptions = run(tight, REQUESTS)
    assert {number: merged(parts) for number, parts in found.items()} == expected
    assert preemptions > 0
    found, _ = run(tight, REQUESTS[::-1])  # prompts are cached now
    assert {number: merged(parts) for number, parts in found.items()} == expected
    assert roomy.info.deterministic


def alone(engine):
    """What each request gets that nothing runs beside."""
    return {request.id: merged(run(engine, [request])[0][request.id]) for request in REQUESTS}


def merged(parts):
    """Of several steps."""
    ids, logprobs, top, prompt = zip(*parts, strict=True)
    return [[x for each in several for x in each or ()] for several in (ids, logprobs, top, prompt)]


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_requests_get_the_same_alone_and_in_a_crowd_in_chunks_and_after_preemption(tmp_path, dtype):
    check(make_checkpoint(tmp_path, "llama"), dtype=dtype)


@needs_native
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_every_family(tmp_path, family):
    check(make_checkpoint(tmp_path, family), dtype="float32")


@needs_native
def test_weights_in_int8(tmp_path):
    check(make_checkpoint(tmp_path, "llama"), dtype="bfloat16", quantize="int8")


@needs_native
def test_weights_in_int4_which_are_rounded_by_what_steps_of_a_size_show(tmp_path):
    engine = engine_of(make_checkpoint(tmp_path, "llama"), dtype="bfloat16", quantize="int4", prefix_caching=False)
    found, _ = run(engine, REQUESTS)
    assert {number: merged(parts) for number, parts in found.items()} == alone(engine)


@needs_native
def test_encoder_decoders(tmp_path):
    folder = make_checkpoint(tmp_path, "t5")
    requests = [Request(id=r.id, prompt_ids=r.prompt_ids, params=WISHES[r.id % 2]) for r in REQUESTS]
    engine = engine_of(folder, dtype="float32", max_batch_prefill_tokens=128)
    found, _ = run(engine, requests)
    for request in requests:
        assert run(engine, [request])[0][request.id] == found[request.id]


def test_what_cannot_be_promised_is_refused(tmp_path, monkeypatch):
    llama = make_checkpoint(tmp_path / "llama", "llama")
    with pytest.raises(UnsupportedKernel, match=r"no attention kernel .*torch: a row's result may depend"):
        engine_of(llama, kv_cache_dtype="fp8_e5m2")
    with pytest.raises(UnsupportedKernel, match=r"no rms_norm kernel .*native: reference was asked for"):
        engine_of(llama, disable_custom_kernels=True)
    with pytest.raises(ConfigError, match=r"--deterministic: transformers runs this model"):
        engine_of(make_checkpoint(tmp_path / "mamba", "mamba"))


def test_an_op_that_few_models_need_may_be_absent(monkeypatch):
    spec = {"op": "linear_int8", "target": "math:floor", "device": "cpu", "priority": 99}
    query = KernelQuery(device="cpu", dtype="float32", head_size=64, block_size=32, deterministic=True)
    offers = [("core", KernelSpec(**{**vars(o), "batch_invariant": o.op != "linear_int8"})) for o in KERNELS]
    monkeypatch.setattr(select, "offered_kernels", lambda plugins: [*offers, ("other", KernelSpec(name="x", **spec))])
    kernels, choices = select_kernels(load_plugins([builtin], []), query)
    assert choices["linear_int8"].spec.name == "none"
    with pytest.raises(UnsupportedKernel, match=r"no linear_int8 kernel here .* may depend on the rows beside it"):
        kernels.linear_int8.pack(torch.zeros(2, 2))


@pytest.mark.gpu
@on_gpu
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # of transformers' GPTBigCode
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_on_a_gpu(tmp_path, family, dtype):
    check(make_checkpoint(tmp_path, family), device="cuda", dtype=dtype)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("kv_cache_dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_keys_and_values_in_float8_on_a_gpu(tmp_path, kv_cache_dtype):
    if kv_cache_dtype == "fp8_e4m3fn" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not convert it")
    check(make_checkpoint(tmp_path, "llama"), device="cuda", dtype="bfloat16", kv_cache_dtype=kv_cache_dtype)


@pytest.mark.gpu
@on_gpu
def test_long_prompts_beside_many_decodes_on_a_gpu(tmp_path):
    folder = make_checkpoint(tmp_path, "llama", max_position_embeddings=4096, hidden_size=256, intermediate_size=512)
    prompts = [[(17 * i + j * j) % 380 + 3 for j in range(3000 if i == 5 else 40 + i)] for i in range(70)]
    requests = [Request(id=i, prompt_ids=prompt, params=WISHES[i % 2]) for i, prompt in enumerate(prompts)]
    engine = engine_of(folder, device="cuda", dtype="bfloat16", max_batch_prefill_tokens=1000, prefix_caching=False)
    found, _ = run(engine, requests)
    for request in requests[:8]:
        assert merged(run(engine, [request])[0][request.id]) == merged(found[request.id])
