"""Kernels that say so give a row the same bits whatever is beside it; see `KernelSpec.batch_invariant`."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from tgi_core.attention.base import AttentionSpec, StepInput
from tgi_core.errors import UnsupportedKernel
from tgi_core.kernels.ops import Frequencies, GatedLinearKernel, KernelQuery, Kernels, Penalties, TokenTables
from tgi_core.kernels.reference.activation import silu_and_mul
from tgi_core.kernels.reference.linear import linear as plain_linear
from tgi_core.kernels.select import MAY_BE_ABSENT, select_kernels
from tgi_core.plugins.specs import resolve

ROWS = 80
#: first row and number of rows of the batches that are cut out of ROWS
BATCHES = [(row % 3, count) for row, count in enumerate(range(1, ROWS - 1))] + [(ROWS - 1, 1), (0, ROWS)]
VOCABULARY = 5003
NORMS = ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm")
ACTIVATIONS = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "gelu", "gelu_tanh")
CHOICES = ("greedy", "sample", "top_k", "top_p", "penalize", "apply_bitmask")
LINEAR = ("linear", "linear_int8", "linear_int4")


def serving(vendor, kernel, dtype, size=64, **asked):
    """The kernel and its query, or a skip with its reason."""
    if not kernel.batch_invariant:
        pytest.skip("does not say that it is")
    query = KernelQuery(**{**vars(vendor.query(dtype, size)), "deterministic": True, **asked})
    if reason := vendor.why_not(kernel, query):
        pytest.skip(reason)
    return resolve(kernel.target), query


def drawn(dtype, *shape, scale=1.0, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(getattr(torch, dtype))


def check(run, *rows):
    """`run` of some rows gives what it gives of them among all; it may overwrite them."""
    whole = parts(run(*(x.clone() for x in rows)))
    for first, count in BATCHES:
        some = parts(run(*(x[first : first + count].clone() for x in rows)))
        for number, (one, all_) in enumerate(zip(some, whole, strict=True)):
            assert torch.equal(one, all_[first : first + count]), f"result {number} of rows {first} + {count}"


def parts(value):
    return value if isinstance(value, tuple) else (value,)


def test_what_no_kernel_promises_is_refused(vendor):
    query = KernelQuery(**{**vars(vendor.query(vendor.dtypes[0])), "deterministic": True})
    able = {spec.op for spec in (*vendor.kernels, *vendor.attentions) if spec.batch_invariant}
    if {op.name for op in fields(Kernels)} - able - {*MAY_BE_ABSENT}:
        with pytest.raises(UnsupportedKernel, match="a row's result may depend on the rows beside it"):
            select_kernels(vendor.plugins, query)
    else:
        _, choices = select_kernels(vendor.plugins, query)
        assert all(choice.spec.batch_invariant or choice.absent for choice in choices.values())


@pytest.mark.ops(*NORMS)
@pytest.mark.parametrize("size", [64, 1000, 4096])
def test_norms(vendor, kernel, dtype, size):
    (function, _), device = serving(vendor, kernel, dtype), vendor.backend.torch_device
    weight = drawn(dtype, size).to(device)
    more = (weight, weight) if "layer" in kernel.op else (weight,)
    rows = [drawn(dtype, ROWS, size, seed=s).to(device) for s in range(2 if kernel.op.startswith("add") else 1)]
    check(lambda *x: function(*x, *more, 1e-5), *rows)


@pytest.mark.ops("look_up")
def test_look_up(vendor, kernel, dtype):
    (function, _), device = serving(vendor, kernel, dtype), vendor.backend.torch_device
    table = drawn(dtype, 100, 5000).to(device)
    check(lambda rows: function(table, rows), torch.arange(ROWS).to(device) * 37 % 100)


@pytest.mark.ops("angles")
def test_angles(vendor, kernel, dtype):
    (function, _), device = serving(vendor, kernel, dtype), vendor.backend.torch_device
    frequencies = Frequencies(1e4 ** -(torch.arange(40) / 40).to(device), 1.5)
    check(lambda positions: function(positions, frequencies), torch.arange(ROWS).to(device) * 997)


@pytest.mark.ops("rotary")
def test_rotary(vendor, kernel, dtype):
    (function, _), device = serving(vendor, kernel, dtype), vendor.backend.torch_device
    angles = drawn("float32", ROWS, 32).to(device)
    q, k = drawn(dtype, ROWS, 6, 80).to(device), drawn(dtype, ROWS, 2, 80).to(device)
    check(function, q, k, angles.cos(), angles.sin())


@pytest.mark.ops(*ACTIVATIONS)
@pytest.mark.parametrize("size", [62, 5504])
def test_activations(vendor, kernel, dtype, size):
    function, _ = serving(vendor, kernel, dtype)
    check(function, drawn(dtype, ROWS, size, scale=3.0).to(vendor.backend.torch_device))


@pytest.mark.ops(*LINEAR)
@pytest.mark.parametrize("shape", [(64, 64), (1000, 576), (33, 1000), (512, 4096)], ids=str)
def test_products(vendor, kernel, dtype, shape):
    (function, _), device = serving(vendor, kernel, dtype), vendor.backend.torch_device
    packed = function.pack(drawn(dtype, *shape, scale=shape[1] ** -0.5).to(device))
    bias, x = drawn(dtype, shape[0]).to(device), drawn(dtype, ROWS, shape[1]).to(device)
    check(lambda x: function(x, packed, bias), x)
    if isinstance(function, GatedLinearKernel) and shape[0] % 2 == 0:
        check(lambda x: function.gated(x, packed, None, silu_and_mul), x)


@pytest.mark.ops("experts")
def test_experts(vendor, kernel, dtype):
    (function, _), device = serving(vendor, kernel, dtype), vendor.backend.torch_device
    experts, each, hidden, size = 6, 2, 64, 48
    linear, activation = plain_linear, silu_and_mul
    if vendor.probe.kind == "cpu":  # whose kernel knows the CPU's products only
        from tgi_core.cpu.kernels import silu_and_mul as activation
        from tgi_core.cpu.linear import native_linear as linear
    gate_up = [linear.pack(drawn(dtype, 2 * size, hidden, seed=e).to(device)) for e in range(experts)]
    down = [linear.pack(drawn(dtype, hidden, size, seed=e).to(device)) for e in range(experts)]
    layer = function(linear, activation, gate_up, down)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:each] for _ in range(ROWS)]).to(device)
    weights = torch.rand(ROWS, each, generator=generator).to(device)
    check(layer, drawn(dtype, ROWS, hidden).to(device), chosen, weights)


@pytest.mark.ops("choose_experts")
@pytest.mark.parametrize("sums_to_one", [True, False])
def test_chosen_experts(vendor, kernel, dtype, sums_to_one):
    function, _ = serving(vendor, kernel, dtype)
    check(lambda scores: function(scores, 4, sums_to_one), drawn(dtype, ROWS, 60).to(vendor.backend.torch_device))


@pytest.mark.ops(*CHOICES)
def test_choices(vendor, kernel, dtype):
    (function, _), device = serving(vendor, kernel, dtype), vendor.backend.torch_device
    generator = torch.Generator().manual_seed(0)
    logits = drawn("float32", ROWS, VOCABULARY, scale=4.0).to(device)
    share = torch.rand(ROWS, generator=generator).to(device)
    if kernel.op == "penalize":
        tables = TokenTables(*(torch.randint(0, 3, (ROWS, VOCABULARY)).to(device, torch.int32) for _ in range(2)))
        slots = torch.arange(ROWS, device=device)
        check(lambda x, at, s: function(x, tables, at, Penalties(s + 0.5, s, s)), logits, slots, share)
        return
    more = {
        "greedy": (),
        "sample": (torch.where(share > 0.8, -1.0, share.double()),),
        "top_k": ((share * 100).long() + 1,),
        "top_p": (share,),
        "apply_bitmask": (torch.randint(-(2**31), 2**31, (ROWS, -(-VOCABULARY // 32))).to(device, torch.int32),),
    }
    check(function, logits, *more[kernel.op])


LAYERS = {
    "groups": {"heads": 6, "kv_heads": 2, "head_size": 64},
    "one head for all": {"heads": 20, "kv_heads": 1, "head_size": 40},
    "window": {"heads": 4, "kv_heads": 2, "head_size": 64, "window": 37},
    "alibi": {"heads": 4, "kv_heads": 4, "head_size": 64, "alibi_slopes": (0.5, 0.25, 0.125, 0.0625)},
    "soft cap": {"heads": 4, "kv_heads": 2, "head_size": 128, "soft_cap": 5.0},
}
ASKED = {"window": {"sliding_window": True}, "soft cap": {"soft_cap": True}}
TOKENS, OTHERS, BLOCKS = 600, 3, 32  #: of the sequence, sequences beside it, blocks of each
#: how the tokens are cut into steps, and whether other sequences are beside them
CUTS = {
    "whole, beside others": ([TOKENS], True),
    "chunks": ([256, 256, 88], False),
    "odd chunks beside others": ([33, 150, 1, 1, 300, 115], True),
    "decodes": ([590, *[1] * 10], False),
    "decodes beside others": ([270, *[1] * 5, 320, *[1] * 5], True),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_attention(vendor, attention, dtype, layer):
    spec = AttentionSpec(scale=0.1, **LAYERS[layer])
    kind, query = serving(vendor, attention, dtype, spec.head_size, **ASKED.get(layer, {}))
    data = drawn(dtype, TOKENS, spec.heads + 2 * spec.kv_heads, spec.head_size)
    expected = attend(kind(query), spec, data, [TOKENS], 0, vendor)
    for name, (lengths, crowded) in CUTS.items():
        found = attend(kind(query), spec, data, lengths, OTHERS if crowded else 0, vendor)
        assert torch.equal(found, expected), name


def attend(backend, spec, data, lengths, others, vendor):
    """What a sequence gets whose tokens come in steps of these lengths, in the middle of `others` that grow too."""
    backend.add_layer(spec)
    width = max(BLOCKS, -(-TOKENS // backend.block_size))
    backend.allocate(width * (others + 1))
    rng, device = np.random.default_rng(len(lengths)), vendor.backend.torch_device
    tables = rng.permutation(width * (others + 1)).astype(np.int32).reshape(others + 1, width)
    own, context, outputs = others // 2, np.zeros(others + 1, dtype=np.int32), []
    for length in lengths:
        new = rng.integers(1, 9, others + 1).astype(np.int32)
        new[own] = length
        context += new
        starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        qkv = torch.randn(int(starts[-1]), *data.shape[1:]).to(data.dtype)
        rows = slice(starts[own], starts[own + 1])
        qkv[rows] = data[context[own] - length : context[own]]
        used = -(-int(context.max()) // backend.block_size)
        meta = backend.prepare(StepInput(starts, context.copy(), np.ascontiguousarray(tables[:, :used])))
        q, k, v = qkv.to(device).split((spec.heads, spec.kv_heads, spec.kv_heads), dim=1)
        outputs.append(backend.forward(0, q, k, v, meta)[rows].cpu())
    return torch.cat(outputs)
