"""Each attention backend that is offered, against the reference on the host."""

import numpy as np
import pytest
import torch

from tgi_core.attention.base import AttentionSpec, SourceInput, StepInput
from tgi_core.attention.reference import ReferenceAttention
from tgi_core.kernels.ops import KernelQuery
from tgi_core.plugins.specs import resolve

TOLERANCE = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 2e-2}
NUM_BLOCKS = 64
SEQUENCES = 4
LAYERS = {
    "one head for each query": {"heads": 4, "kv_heads": 4, "head_size": 64},
    "groups": {"heads": 6, "kv_heads": 2, "head_size": 64},
    "one head for all": {"heads": 5, "kv_heads": 1, "head_size": 64},
    "head of 80": {"heads": 4, "kv_heads": 2, "head_size": 80},
    "head of 96": {"heads": 4, "kv_heads": 4, "head_size": 96},
    "head of 128": {"heads": 8, "kv_heads": 2, "head_size": 128},
    "head of 256": {"heads": 2, "kv_heads": 1, "head_size": 256},
    "window": {"heads": 4, "kv_heads": 2, "head_size": 64, "window": 7},
    "alibi": {"heads": 4, "kv_heads": 4, "head_size": 64, "alibi_slopes": (0.5, 0.25, 0.125, 0.0625)},
    "soft cap": {"heads": 4, "kv_heads": 2, "head_size": 64, "soft_cap": 5.0},
}
#: what a backend is asked before it is given such a layer
ASKED = {"window": {"sliding_window": True}, "soft cap": {"soft_cap": True}}
#: (new tokens, tokens before) of each sequence, step by step
PREFILL, RAGGED = [[(9, 0)]], [[(5, 0), (33, 0), (1, 0), (90, 0)]]
DECODE = [[(90, 0), (3, 0)], [(1, 90), (1, 3)], [(1, 91), (1, 4)]]
CHUNKS = [[(20, 0), (9, 0)], [(30, 20), (17, 9)], [(1, 50), (40, 26)]]
MIXED = [[(20, 0)], [(1, 20), (33, 0)], [(1, 21), (1, 33), (7, 0)]]


def query_of(vendor, dtype, size, **asked):
    plain = vendor.query(dtype, size)
    return KernelQuery(**{**vars(plain), **asked})


def serving(vendor, attention, dtype, size, **asked):
    """The backend's class, or a skip with its reason."""
    query = query_of(vendor, dtype, size, **asked)
    if reason := vendor.why_not(attention, query):
        pytest.skip(reason)
    return resolve(attention.target), query


def pair(vendor, attention, dtype, specs, **asked):
    """(the backend on its device, the reference on the host), with these layers."""
    kind, query = serving(vendor, attention, dtype, max(spec.head_size for spec in specs), **asked)
    host = KernelQuery(**{**vars(query), "device": "cpu", "torch_device": "cpu", "dtype": "float32"})
    backends = kind(query), ReferenceAttention(host)
    for backend in backends:
        for spec in specs:
            backend.add_layer(spec)
        backend.allocate(NUM_BLOCKS)
    return backends


def anywhere():
    """Blocks in any order."""
    return np.random.default_rng(0).permutation(NUM_BLOCKS).astype(np.int32)


def inputs(steps, block_size, order=None):
    """Steps whose sequences have their blocks in this order; what tables have more than is needed is undefined."""
    order = anywhere() if order is None else order
    width = NUM_BLOCKS // SEQUENCES
    for step in steps:
        lengths, before = (np.array(x, dtype=np.int32) for x in zip(*step, strict=True))
        tables = np.stack([order[i * width : (i + 1) * width] for i in range(len(step))])
        used = max(1, -(-int((lengths + before).max()) // block_size))
        yield StepInput(starts_of(lengths), lengths + before, tables[:, :used])


def starts_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def draw(generator, dtype, tokens, *heads_and_size):
    *heads, size = heads_and_size
    wide = torch.randn(tokens, sum(heads), size, generator=generator).to(getattr(torch, dtype))
    return wide.split(heads, dim=1)  # as a fused projection gives them: rows lie apart


def assert_same(found, expected, dtype):
    found, expected = found.cpu().float(), expected.float()
    assert torch.isfinite(found).all()
    error = (found - expected).norm() / expected.norm()
    assert error < TOLERANCE[dtype], f"{error:.2e} wrong, more than {TOLERANCE[dtype]:.0e}"


def compare(vendor, attention, dtype, specs, steps, **asked):
    own, reference = pair(vendor, attention, dtype, specs, **asked)
    generator, device = torch.Generator().manual_seed(0), vendor.backend.torch_device
    for step in inputs(steps, own.block_size):
        meta, expected_meta = own.prepare(step), reference.prepare(step)
        for layer, spec in enumerate(specs):
            parts = draw(generator, dtype, step.num_tokens, spec.heads, spec.kv_heads, spec.kv_heads, spec.head_size)
            expected = reference.forward(layer, *(part.float() for part in parts), expected_meta)
            found = own.forward(layer, *(part.to(device) for part in parts), meta)
            assert found.shape == expected.shape
            assert_same(found, expected, dtype)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("steps", [RAGGED, DECODE], ids=["prefill", "decode"])
def test_prompts_and_decodes_of_every_kind_of_layer(vendor, attention, dtype, layer, steps):
    size = LAYERS[layer]["head_size"]
    spec = AttentionSpec(scale=size**-0.5, **LAYERS[layer])
    compare(vendor, attention, dtype, [spec, spec], steps, **ASKED.get(layer, {}))


@pytest.mark.parametrize("layer", ["groups", "window", "alibi", "head of 128"])
def test_prompts_in_chunks(vendor, attention, dtype, layer):
    if not vendor.capabilities.chunked_prefill:
        pytest.skip("the device takes whole prompts only")
    spec = AttentionSpec(scale=0.1, **LAYERS[layer])
    compare(vendor, attention, dtype, [spec], CHUNKS, **ASKED.get(layer, {}))


@pytest.mark.parametrize("layer", ["groups", "window", "alibi", "head of 128"])
def test_prompts_beside_decodes(vendor, attention, dtype, layer):
    if not vendor.capabilities.mixed_batches:
        pytest.skip("the device does not mix prompts and decodes")
    spec = AttentionSpec(scale=0.1, **LAYERS[layer])
    compare(vendor, attention, dtype, [spec], MIXED, **ASKED.get(layer, {}))


@pytest.mark.parametrize("steps", [RAGGED, DECODE], ids=["prefill", "decode"])
@pytest.mark.parametrize("layer", ["groups", "window", "head of 80"])
def test_keys_and_values_in_a_format_of_their_own(vendor, attention, dtype, kv_dtype, layer, steps):
    if kv_dtype not in vendor.capabilities.kv_dtypes:
        pytest.skip(vendor.capabilities.refused_kv_dtypes[kv_dtype])
    spec = AttentionSpec(scale=LAYERS[layer]["head_size"] ** -0.5, **LAYERS[layer])
    compare(vendor, attention, dtype, [spec, spec], steps, kv_dtype=kv_dtype, **ASKED.get(layer, {}))


def test_layers_of_different_heads(vendor, attention, dtype):
    specs = [AttentionSpec(heads=4, kv_heads=kv, head_size=64, scale=0.125) for kv in (4, 2, 1)]
    compare(vendor, attention, dtype, specs, DECODE)


@pytest.mark.parametrize("seed", range(3))
def test_random_steps(vendor, attention, seed):
    """Sequences that grow by whatever is allowed."""
    rng, capabilities = np.random.default_rng(seed), vendor.capabilities
    lens, steps = [0] * SEQUENCES, []
    for _ in range(6):
        step = []
        for number, length in enumerate(lens):
            may_grow = length == 0 or capabilities.chunked_prefill
            new = int(rng.integers(1, 40)) if may_grow and (not steps or capabilities.mixed_batches) else 1
            if length == 0 and new == 1:
                new = 2
            step.append((new, length))
            lens[number] += new
        steps.append(step)
    spec = AttentionSpec(heads=4, kv_heads=2, head_size=64, scale=0.125)
    compare(vendor, attention, "float32" if "float32" in vendor.dtypes else vendor.dtypes[0], [spec], steps)


@pytest.mark.parametrize("apart", [False, True], ids=["with the decoder", "before the decoder"])
def test_encoders_and_the_decoders_that_read_them(vendor, attention, dtype, apart):
    kinds = ("encoder", "causal", "cross")
    specs = [AttentionSpec(heads=4, kv_heads=4, head_size=64, scale=0.125, kind=kind) for kind in kinds]
    asked = {"encoder_decoder": True, "relative_bias": True}
    own, reference = pair(vendor, attention, dtype, specs, **asked)
    if apart and not own.keeps_sources:
        pytest.skip("reads sources with their decoder")
    generator, device = torch.Generator().manual_seed(0), vendor.backend.torch_device
    bias = {"encoder": torch.randn(4, 15, generator=generator), "causal": torch.randn(4, 8, generator=generator)}
    source_lens = np.array([21, 5], dtype=np.int32)
    tables = np.arange(8, dtype=np.int32).reshape(2, 4)
    for number, (lengths, before) in enumerate((([1, 1], [0, 0]), ([1, 1], [1, 1]))):
        new, old = np.array(lengths, dtype=np.int32), np.array(before, dtype=np.int32)
        starts = starts_of(source_lens if number == 0 else source_lens * 0)
        source = SourceInput(starts, source_lens, tables + 8)
        step = StepInput(starts_of(new), new + old, tables[:, :1], source)
        meta, expected_meta = own.prepare(step), reference.prepare(step)
        for layer, spec in enumerate(specs):
            rows = {"encoder": (int(starts[-1]),) * 2, "causal": (2, 2), "cross": (2, int(starts[-1]))}[spec.kind]
            if spec.kind == "encoder" and not rows[0]:
                continue
            (q,) = draw(generator, dtype, rows[0], 4, 64)
            k, v = draw(generator, dtype, rows[1], 4, 4, 64) if rows[1] else (None, None)
            added = bias.get(spec.kind)
            moved = [part if part is None else part.to(device) for part in (q, k, v)]
            plain = [part if part is None else part.float() for part in (q, k, v)]
            if apart and spec.kind == "cross" and rows[1]:
                own.keep_source(layer, *moved[1:], meta)
                moved[1:] = None, None
            found = own.forward(layer, *moved, meta, added if added is None else added.to(device))
            assert_same(found, reference.forward(layer, *plain, expected_meta, added), dtype)


def test_what_pads_recorded_steps_touches_nothing(vendor, attention):
    dtype = vendor.dtypes[0]
    spec = AttentionSpec(heads=4, kv_heads=2, head_size=64, scale=0.125)
    own, reference = pair(vendor, attention, dtype, [spec])
    rows = 8
    fixed = own.fixed(rows, None, NUM_BLOCKS // SEQUENCES, own.variant(rows, 64))
    if fixed is None:
        pytest.skip("has no metadata for recorded steps")
    generator, device = torch.Generator().manual_seed(0), vendor.backend.torch_device
    in_order = np.arange(NUM_BLOCKS, dtype=np.int32)  # so that zeros name a place that is in use
    *first, last = inputs(DECODE, own.block_size, in_order)
    for step in first:
        meta, expected_meta = own.prepare(step), reference.prepare(step)
        parts = draw(generator, dtype, step.num_tokens, 4, 2, 2, 64)
        own.forward(0, *(part.to(device) for part in parts), meta)
        reference.forward(0, *(part.float() for part in parts), expected_meta)
    fixed.clear()
    nan = [torch.full((rows, heads, 64), float("nan"), dtype=getattr(torch, dtype)).to(device) for heads in (4, 2, 2)]
    own.forward(0, *nan, fixed.metadata)
    fixed.fill(last)
    parts = draw(generator, dtype, 2, 4, 2, 2, 64)
    padded = [torch.cat([part.to(device), filler[2:]]) for part, filler in zip(parts, nan, strict=True)]
    found = own.forward(0, *padded, fixed.metadata)[:2]
    assert_same(found, reference.forward(0, *(part.float() for part in parts), reference.prepare(last)), dtype)


def test_a_block_costs_what_it_says(vendor, attention):
    own, _ = pair(vendor, attention, vendor.dtypes[0], [AttentionSpec(heads=4, kv_heads=2, head_size=64, scale=0.1)])
    assert own.block_bytes() >= 2 * 2 * 64 * own.block_size  # a byte for each number of a key and a value, at least
