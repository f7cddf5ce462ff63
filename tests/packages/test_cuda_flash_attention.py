"""When FlashAttention-4 is chosen, and that it attends as the reference does."""

import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.attention.base import AttentionSpec, StepInput
from tgi_core.attention.reference import ReferenceAttention
from tgi_core.kernels.ops import KernelQuery
from tgi_core.triton.attention import TritonAttention
from tgi_core.triton.step import StepBuilder
from tgi_cuda import attention, flash_attention_4
from tgi_cuda.flash_attention_4 import FlashAttention4

BLOCKS, BLOCK_SIZE = 96, 32
SPECS = {
    "gqa": {"heads": 8, "kv_heads": 2, "head_size": 128},
    "mha": {"heads": 4, "kv_heads": 4, "head_size": 64},
    "window": {"heads": 4, "kv_heads": 2, "head_size": 64, "window": 100},
    "soft cap": {"heads": 4, "kv_heads": 2, "head_size": 128, "soft_cap": 20.0},
    "alibi": {"heads": 4, "kv_heads": 4, "head_size": 64, "alibi_slopes": (0.5, 0.25, 0.125, 0.0625)},
}


def query(**changes):
    return KernelQuery(**{"device": "cuda", "dtype": "bfloat16", "head_size": 128, "block_size": BLOCK_SIZE, **changes})


def step_of(*sequences):
    """(new tokens, tokens before) of each."""
    new, before = (np.array(x, dtype=np.int32) for x in zip(*sequences, strict=True))
    tables = np.random.default_rng(0).permutation(BLOCKS).astype(np.int32).reshape(len(sequences), -1)
    return StepInput(np.concatenate([[0], np.cumsum(new)]).astype(np.int32), new + before, tables)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "4.0.0b36")
    monkeypatch.setattr(attention, "compute_capability", lambda: (9, 0))


def test_it_is_for_hopper(installed, monkeypatch):
    assert attention.flash_attention_4_supports(query()) == ""
    monkeypatch.setattr(attention, "compute_capability", lambda: (8, 6))
    assert "8.6" in attention.flash_attention_4_supports(query())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float32"}, "float32"),
        ({"head_size": 72}, "16"),
        ({"relative_bias": True}, "bias"),
        ({"kv_dtype": "fp8_e5m2"}, "not in fp8_e5m2"),
    ],
)
def test_it_says_what_it_cannot_do(installed, changes, reason):
    assert reason in attention.flash_attention_4_supports(query(**changes))


@pytest.mark.parametrize(
    ("capability", "chosen"), [((7, 5), "torch_prompts"), ((8, 0), "flash_attention_2"), ((9, 0), "flash_attention_4")]
)
def test_one_library_serves_prompts_of_each_generation(installed, monkeypatch, capability, chosen):
    monkeypatch.setattr(attention, "compute_capability", lambda: capability)
    reasons = {
        name: getattr(attention, f"{name}_supports")(query(dtype="float16"))
        for name in ("torch_prompts", "flash_attention_2", "flash_attention_4")
    }
    assert [name for name, reason in reasons.items() if not reason] == [chosen]
    assert all(".".join(map(str, capability)) in reason for reason in reasons.values() if reason)


def test_it_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert "pip install" in attention.flash_attention_4_supports(query())


def test_prompts_begin_where_the_first_one_does():
    builder = StepBuilder(BLOCK_SIZE, torch.device("cpu"), [16])
    prompts = builder.build(step_of((1, 40), (1, 3), (7, 0), (1, 9)), 1)["causal"].prompts
    assert (prompts.first, prompts.first_query, prompts.longest, prompts.width) == (2, 2, 7, BLOCKS // 4)
    assert prompts.starts.tolist() == [0, 7, 8]
    assert builder.build(step_of((1, 40), (1, 3)), 1)["causal"].prompts is None


def test_triton_takes_its_place_where_it_cannot_run(monkeypatch, caplog):
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter has to be chosen before kernels are compiled for the GPU")
    monkeypatch.setattr(FlashAttention4, "gathers_from", 8)

    def fail(*arguments, **places):
        raise ImportError("no cutlass")

    monkeypatch.setattr(flash_attention_4, "_attend", fail)
    spec = AttentionSpec(heads=2, kv_heads=1, head_size=16, scale=0.25)
    found = [attend(kind, spec, [((20, 0),)], "float32") for kind in (FlashAttention4, TritonAttention)]
    assert torch.equal(*found)
    assert "no cutlass" in caplog.text


def test_long_prompts_are_its_own(monkeypatch):
    """Keys that are new or few lie one after the other, more are read in blocks; all else stays with Triton."""
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter has to be chosen before kernels are compiled for the GPU")
    monkeypatch.setattr(FlashAttention4, "gathers_from", 8)
    monkeypatch.setattr("tgi_core.triton.step.MOST_GATHERED", 40)
    calls = []

    def varlen(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale, causal, window_size, softcap, cu_seqlens_k=None,
               max_seqlen_k=None, seqused_k=None, page_table=None):  # fmt: skip
        """FlashAttention-4's function, for what it is asked here; the layers share no keys between heads."""
        calls.append("blocks" if page_table is not None else "one after the other")
        assert (causal, window_size, softcap, max_seqlen_q) == (True, (None, None), 0.0, int(cu_seqlens_q.diff().max()))
        out = torch.empty(q.shape)
        for i, (first, last) in enumerate(zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True)):
            if page_table is None:
                begin, end = cu_seqlens_k[i : i + 2].tolist()
                assert end - begin <= max_seqlen_k
                keys, values = k[begin:end], v[begin:end]
            else:
                keys, values = (x[page_table[i].long()].flatten(0, 1)[: seqused_k[i]] for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q[first:last], keys) * softmax_scale
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(len(keys) - (last - first) + 1)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            out[first:last] = torch.einsum("hqk,khd->qhd", weights, values)
        return (out,)

    cute = SimpleNamespace(flash_attn_varlen_func=varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(cute=cute))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    spec = AttentionSpec(heads=2, kv_heads=2, head_size=16, scale=0.25)
    steps = [
        ((20, 0), (3, 0), (1, 0)),
        ((1, 20), (9, 3), (1, 1)),
        ((1, 21), (30, 12), (1, 2)),
        ((2, 22), (1, 42), (1, 3)),
    ]
    found, expected = (attend(kind, spec, steps, "float32") for kind in (FlashAttention4, ReferenceAttention))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert calls[2:] == ["one after the other"] * 4 + ["blocks"] * 2  # after both were compiled


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.filterwarnings("ignore")  # what its compiler says of its own code
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("most", [600, 1 << 14], ids=["in blocks", "one after the other"])
def test_equals_the_reference(spec, dtype, most, monkeypatch):
    pytest.importorskip("flash_attn.cute", reason="flash-attn-4 is not installed")
    monkeypatch.setattr(FlashAttention4, "gathers_from", 8)
    monkeypatch.setattr("tgi_core.triton.step.MOST_GATHERED", most)
    spec = AttentionSpec(scale=spec["head_size"] ** -0.5, **spec)
    steps = [((300, 0), (513, 0), (1, 0)), ((1, 300), (200, 513), (1, 1))]
    expected, found = (attend(kind, spec, steps, dtype) for kind in (ReferenceAttention, FlashAttention4))
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)


def attend(kind, spec, steps, dtype):
    """What two layers answer, step by step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = kind(query(device=device, torch_device=device, dtype=dtype, head_size=spec.head_size))
    for _ in range(2):
        backend.add_layer(spec)
    backend.allocate(BLOCKS)
    generator, outputs = torch.Generator().manual_seed(0), []
    for step in (step_of(*sequences) for sequences in steps):
        meta = backend.prepare(step)
        for layer in range(2):
            qkv = torch.randn(step.num_tokens, spec.heads + 2 * spec.kv_heads, spec.head_size, generator=generator)
            parts = qkv.to(device, getattr(torch, dtype)).split((spec.heads, spec.kv_heads, spec.kv_heads), dim=1)
            outputs.append(backend.forward(layer, *parts, meta).flatten())
    return torch.cat(outputs).float().cpu()
