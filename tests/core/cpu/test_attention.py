"""The CPU's attention backends against the reference, over every kind of batch and head."""

import numpy as np
import pytest
import torch

from tgi_core.attention.base import AttentionSpec, StepInput
from tgi_core.attention.reference import ReferenceAttention
from tgi_core.cpu import native
from tgi_core.cpu.attention import CpuAttention
from tgi_core.cpu.attention import supports as native_attention_supports
from tgi_core.cpu.torch_attention import TorchAttention, supports
from tgi_core.device.capabilities import FLOAT8
from tgi_core.kernels.ops import KernelQuery

needs_native = pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable() or "native kernels are there")
BACKENDS = [pytest.param(CpuAttention, marks=needs_native), TorchAttention]
NUM_BLOCKS = 64

SPECS = {
    "gqa": {"heads": 6, "kv_heads": 2, "head_size": 64},
    "mha, odd head size": {"heads": 3, "kv_heads": 3, "head_size": 40},
    "mqa, many heads": {"heads": 20, "kv_heads": 1, "head_size": 16},
    "window": {"heads": 4, "kv_heads": 2, "head_size": 32, "window": 7},
    "window of one": {"heads": 4, "kv_heads": 2, "head_size": 32, "window": 1},
    "alibi": {"heads": 4, "kv_heads": 4, "head_size": 32, "alibi_slopes": (0.5, 0.25, 0.125, 0.0625)},
    "soft cap": {"heads": 4, "kv_heads": 2, "head_size": 80, "soft_cap": 5.0},
    "large head": {"heads": 2, "kv_heads": 1, "head_size": 256},
}

#: (new tokens, tokens before) of each sequence, step by step
STEPS = {
    "prefill": [[(5, 0), (33, 0), (1, 0), (70, 0)]],
    "decode": [[(40, 0), (3, 0)], [(1, 40), (1, 3)], [(1, 41), (1, 4)]],
    "chunks beside decodes": [[(20, 0), (9, 0)], [(1, 20), (30, 9)], [(40, 21), (1, 39), (2, 0)]],
}


def run(backend_type, spec, steps, dtype, block_size, **asked):
    query = KernelQuery(device="cpu", dtype=dtype, head_size=spec.head_size, block_size=block_size, **asked)
    backend = backend_type(query)
    layers = [backend.add_layer(spec), backend.add_layer(spec)]
    backend.allocate(NUM_BLOCKS)
    generator = torch.Generator().manual_seed(0)
    order = np.random.default_rng(0).permutation(NUM_BLOCKS).astype(np.int32)  # blocks of a sequence lie anywhere
    outputs = []
    for step in steps:
        lengths = np.array([length for length, _ in step], dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        context = np.array([length + before for length, before in step], dtype=np.int32)
        width = NUM_BLOCKS // 4
        tables = np.stack([order[i * width : (i + 1) * width] for i in range(len(step))])
        meta = backend.prepare(StepInput(starts, context, tables))
        for layer in layers:
            qkv = torch.randn(int(starts[-1]), spec.heads + 2 * spec.kv_heads, spec.head_size, generator=generator).to(
                getattr(torch, dtype)
            )
            q, k, v = qkv.split((spec.heads, spec.kv_heads, spec.kv_heads), dim=1)
            outputs.append(backend.forward(layer, q, k, v, meta))
    return torch.cat([output.flatten() for output in outputs]).float()


@pytest.mark.parametrize("backend_type", BACKENDS)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_equals_the_reference(backend_type, spec, steps):
    spec = AttentionSpec(scale=spec["head_size"] ** -0.5, **spec)
    query = KernelQuery(device="cpu", dtype="float32", head_size=16, block_size=16, soft_cap=bool(spec.soft_cap))
    if backend_type is TorchAttention and supports(query):
        pytest.skip(supports(query))
    expected = run(ReferenceAttention, spec, steps, "float32", 32)
    torch.testing.assert_close(run(backend_type, spec, steps, "float32", 32), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend_type", BACKENDS)
@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_bfloat16_is_as_near_as_its_precision(backend_type, spec, block_size):
    spec = AttentionSpec(scale=spec["head_size"] ** -0.5, **spec)
    if backend_type is TorchAttention and spec.soft_cap:
        pytest.skip("PyTorch's scaled_dot_product_attention has no soft cap")
    steps = STEPS["chunks beside decodes"]
    expected = run(ReferenceAttention, spec, steps, "bfloat16", block_size)
    torch.testing.assert_close(run(backend_type, spec, steps, "bfloat16", block_size), expected, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("backend_type", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_poisoned_sequence_left_in_a_block_does_not_leak_into_the_next(backend_type, dtype):
    spec = AttentionSpec(heads=2, kv_heads=1, head_size=16, scale=1.0)
    backend = backend_type(KernelQuery(device="cpu", dtype=dtype, head_size=16, block_size=32))
    layer = backend.add_layer(spec)
    backend.allocate(2)

    def run(tokens, fill=None):
        step = StepInput(np.array([0, tokens], np.int32), np.array([tokens], np.int32), np.array([[1]], np.int32))
        qkv = torch.randn(tokens, 4, 16) if fill is None else torch.full((tokens, 4, 16), fill)
        q, k, v = qkv.to(getattr(torch, dtype)).split((2, 1, 1), dim=1)
        return backend.forward(layer, q, k, v, backend.prepare(step))

    assert run(32, fill=float("nan")).isnan().all()
    assert not run(3).isnan().any()


@pytest.mark.parametrize("kv_dtype", FLOAT8)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("name", ["gqa", "window", "alibi"])
def test_keys_and_values_in_float8(name, steps, kv_dtype):
    spec = AttentionSpec(scale=SPECS[name]["head_size"] ** -0.5, **SPECS[name])
    expected = run(ReferenceAttention, spec, steps, "float32", 32, kv_dtype=kv_dtype)
    found = run(TorchAttention, spec, steps, "float32", 32, kv_dtype=kv_dtype)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    plain = run(ReferenceAttention, spec, steps, "float32", 32)
    error = (plain - found).norm() / plain.norm()
    assert 1e-3 < error < 0.2  # a format of two or three bits behind the point


def test_the_compiled_kernel_refuses_float8():
    query = KernelQuery(device="cpu", dtype="float32", head_size=64, block_size=32, kv_dtype="fp8_e5m2")
    assert "not in fp8_e5m2" in native_attention_supports(query)


@needs_native
def test_block_bytes_counts_padding_of_odd_heads():
    backend = CpuAttention(KernelQuery(device="cpu", dtype="bfloat16", head_size=40, block_size=32))
    backend.add_layer(AttentionSpec(heads=2, kv_heads=2, head_size=40, scale=1.0))
    assert backend.block_bytes() == 2 * 2 * 64 * 32 * 2


@needs_native
def test_blocks_that_the_kernel_cannot_cut_into_tiles_are_refused():
    query = KernelQuery(device="cpu", dtype="float32", head_size=64, block_size=16)
    assert "multiple of 32" in native_attention_supports(query)
