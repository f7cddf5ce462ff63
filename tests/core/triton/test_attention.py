"""Paged attention in Triton against the reference, over every kind of batch, head and layer."""

import math
from importlib import metadata

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.attention.base import AttentionSpec, SourceInput, StepInput
from tgi_core.attention.cache_dtype import put, round_to_cache
from tgi_core.attention.reference import ReferenceAttention
from tgi_core.kernels.ops import KernelQuery
from tgi_core.kernels.reference.rotary import rotary
from tgi_core.triton import attention, overlap, tiles
from tgi_core.triton.attention import TritonAttention
from tgi_core.triton.chip import Chip
from tgi_core.triton.fixed import FixedDecodes
from tgi_core.triton.flash_attention_2 import FlashAttention2
from tgi_core.triton.step import StepBuilder
from tgi_core.triton.support import attention_supports, flash_attention_2_supports
from tgi_core.triton.torch_prompts import TorchPrompts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_BLOCKS = 64

SPECS = {
    "gqa": {"heads": 6, "kv_heads": 2, "head_size": 64},
    "mha, odd head size": {"heads": 3, "kv_heads": 3, "head_size": 40},
    "mqa, more heads than share a program": {"heads": 18, "kv_heads": 1, "head_size": 16},
    "window": {"heads": 4, "kv_heads": 2, "head_size": 32, "window": 7},
    "window of one": {"heads": 4, "kv_heads": 2, "head_size": 32, "window": 1},
    "alibi": {"heads": 4, "kv_heads": 4, "head_size": 32, "alibi_slopes": (0.5, 0.25, 0.125, 0.0625)},
    "soft cap": {"heads": 4, "kv_heads": 2, "head_size": 80, "soft_cap": 5.0},
    "head of 96": {"heads": 2, "kv_heads": 2, "head_size": 96},
    "head of 128": {"heads": 8, "kv_heads": 2, "head_size": 128},
    "large head": {"heads": 2, "kv_heads": 1, "head_size": 256},
}
#: (new tokens, tokens before) of each sequence, step by step
STEPS = {
    "prefill": [[(5, 0), (33, 0), (1, 0), (170, 0)]],
    "decode": [[(140, 0), (3, 0)], [(1, 140), (1, 3)], [(1, 141), (1, 4)]],
    "chunks beside decodes": [[(20, 0), (9, 0)], [(1, 20), (130, 9)], [(40, 21), (1, 139), (2, 0)]],
}
#: the interpreter is slow, and knows other ways to round than a GPU
EXACTNESS = [("float32", 16), ("float16", 128), ("bfloat16", 32), ("bfloat16", 64)][: 4 if DEVICE == "cuda" else 1]
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


def make(backend_type, spec, dtype, block_size, layers=2, **query):
    backend = backend_type(
        KernelQuery(
            device=DEVICE, torch_device=DEVICE, dtype=dtype, head_size=spec.head_size, block_size=block_size, **query
        )
    )
    for _ in range(layers):
        backend.add_layer(spec)
    backend.allocate(NUM_BLOCKS)
    return backend


def step_inputs(steps, block_size):
    order = np.random.default_rng(0).permutation(NUM_BLOCKS).astype(np.int32)  # blocks of a sequence lie anywhere
    for step in steps:
        lengths, before = (np.array(x, dtype=np.int32) for x in zip(*step, strict=True))
        width = NUM_BLOCKS // 4
        tables = np.stack([order[i * width : (i + 1) * width] for i in range(len(step))])
        yield StepInput(_starts(lengths), lengths + before, tables)


def _starts(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


IN_ORDER_LAYERS = [*SPECS] if DEVICE == "cuda" else ["mha, odd head size", "window"]
#: formats of keys and values that this device converts
FLOAT8 = ("fp8_e4m3fn", "fp8_e5m2")
if DEVICE == "cuda":
    FLOAT8 = FLOAT8[0 if torch.cuda.get_device_capability() >= (8, 9) else 1 :]
#: whose keys and values the kernel of `test_store` puts into the cache; the interpreter takes long for it
STORED = [*SPECS] if DEVICE == "cuda" else ["gqa", "mha, odd head size"]
LAYERS_IN_FLOAT8 = ["gqa", "mha, odd head size", "window"] if DEVICE == "cuda" else ["mha, odd head size"]


@pytest.fixture
def stored_plainly(monkeypatch):
    """Puts keys and values into the cache with PyTorch where kernels are interpreted; `test_store` tests the kernel."""
    if DEVICE == "cpu":
        monkeypatch.setattr(attention, "store", store_plainly)


def store_plainly(q, k, v, rotation, keys, values, slots):
    if rotation is not None:
        for x, turned in zip((q, k), rotary(q, k, *rotation), strict=True):
            x.copy_(turned)
    slots = slots[: len(k)]
    there = slots >= 0
    for cache, x in ((keys, k), (values, v)):
        put(cache.flatten(0, 1), slots[there].long(), x[there])


def run(backend, spec, steps, dtype, prepare=None):
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for step in step_inputs(steps, backend.block_size):
        meta = (prepare or backend.prepare)(step)
        for layer in range(len(backend.specs)):
            q, k, v = draw(spec, step.num_tokens, dtype, generator)
            outputs.append(backend.forward(layer, q, k, v, meta)[: step.num_tokens])
    return torch.cat([output.flatten() for output in outputs]).float().cpu()


def draw(spec, tokens, dtype, generator):
    qkv = torch.randn(tokens, spec.heads + 2 * spec.kv_heads, spec.head_size, generator=generator)
    return qkv.to(DEVICE, getattr(torch, dtype)).split((spec.heads, spec.kv_heads, spec.kv_heads), dim=1)


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("dtype", "block_size"), EXACTNESS)
def test_equals_the_reference(name, steps, dtype, block_size, request):
    if name not in STORED:
        request.getfixturevalue("stored_plainly")
    compare(TritonAttention, SPECS[name], steps, dtype, block_size)


@pytest.mark.parametrize("steps", ["prefill", "chunks beside decodes"])
@pytest.mark.parametrize("name", [*SPECS] if DEVICE == "cuda" else ["mqa, more heads than share a program", "window"])
@pytest.mark.parametrize("copies_tiles", [True, False])
@pytest.mark.parametrize(("dtype", "block_size"), EXACTNESS)
def test_keys_of_long_prompts_are_read_one_after_the_other(name, steps, copies_tiles, dtype, block_size, monkeypatch):
    monkeypatch.setattr(TritonAttention, "gathers_from", 2)
    if not copies_tiles:
        monkeypatch.setattr(attention, "Chip", _NoCopies)
    compare(TritonAttention, SPECS[name], STEPS[steps], dtype, block_size)


@pytest.fixture
def divided(monkeypatch):
    """Lets there be far fewer tiles than the chip could take, and parts be short; gives which launches have parts."""
    monkeypatch.setattr("tgi_core.triton.cut.PART", 32)
    monkeypatch.setattr("tgi_core.triton.cut.STEP", 16)
    monkeypatch.setattr(attention, "Chip", _Large)
    return launched(attention.PREFILL, "DIVIDED", monkeypatch)


def launched(kernel, name, monkeypatch):
    """A constant of each launch of a kernel."""
    launch, found = kernel.launch, []

    def launch_and_look(grid, arguments, constants, *how):
        found.append(constants[name])
        launch(grid, arguments, constants, *how)

    monkeypatch.setattr(kernel, "launch", launch_and_look)
    return found


class _Large(Chip):
    def __init__(self, device):
        super().__init__(device)
        self.multiprocessors = 128


DIVIDED = ["gqa", "mqa, more heads than share a program", "window", "alibi", "soft cap"]


@pytest.mark.usefixtures("stored_plainly")
@pytest.mark.parametrize("steps", ["prefill", "chunks beside decodes"])
@pytest.mark.parametrize("name", [*SPECS] if DEVICE == "cuda" else DIVIDED)
@pytest.mark.parametrize(("dtype", "block_size"), EXACTNESS)
def test_keys_of_few_tiles_are_divided_over_programs(name, steps, dtype, block_size, divided):
    compare(TritonAttention, SPECS[name], STEPS[steps], dtype, block_size)
    assert any(divided)


class _NoCopies(Chip):
    def __init__(self, device):
        super().__init__(device)
        self.is_hopper = False


@pytest.mark.parametrize("is_in_tiles", [True, False])
def test_heads_of_80_are_copied_in_tiles_if_they_lie_so(is_in_tiles, monkeypatch):
    monkeypatch.setattr(TritonAttention, "gathers_from", 2)
    if not is_in_tiles:
        monkeypatch.setattr(attention, "is_in_tiles", lambda x: False)
    compare(TritonAttention, SPECS["soft cap"], [[(5, 0), (33, 0)]], *EXACTNESS[0])


def test_values_of_another_sequence_that_are_no_numbers_stay_there(monkeypatch):
    monkeypatch.setattr(TritonAttention, "gathers_from", 2)
    spec = AttentionSpec(scale=0.2, **SPECS["window"])
    backend = make(TritonAttention, spec, "float32", 16, layers=1)
    (step,) = step_inputs([[(20, 0), (9, 0)]], 16)
    q, k, v = draw(spec, 29, "float32", torch.Generator().manual_seed(0))
    expected = backend.forward(0, q, k, v, backend.prepare(step))[:20].clone()
    k[20:] = v[20:] = float("nan")
    found = backend.forward(0, q, k, v, backend.prepare(step))
    assert torch.equal(found[:20], expected)
    assert found[20:].isnan().all()


def test_the_fewer_programs_decode_the_more_each_reads_at_a_time():
    spec = AttentionSpec(scale=0.2, **SPECS["head of 128"])
    (layer,) = make(TritonAttention, spec, "float16", 16, layers=1)._layers
    assert layer.programs == 2
    halves = [most // 2 for most, _, _ in layer.decodes[:-1]]
    found = [(tile.keys, early) for count in (*halves, 10**6) for tile, early in [layer._tile_of_decodes(count, 1)]]
    assert found == [(256, True), (128, True), (64, False), (32, False)]
    assert [layer._tile_of_decodes(count, 1)[0].keys for count in (1, halves[0] + 1)] == [256, 128]


@pytest.mark.parametrize(("name", "keys", "splits"), [("head of 128", [64, 64], [8, 16]), ("gqa", [256, 128], [4, 8])])
def test_a_sequence_alone_is_split_into_small_programs(name, keys, splits):
    backend = make(TritonAttention, AttentionSpec(scale=0.2, **SPECS[name]), "float16", 16, layers=1)
    (layer,), most = backend._layers, backend._chip.multiprocessors
    few, many = 2, 2 * most
    found = [layer._tile_of_decodes(1, count) for count in (few, many)]
    assert [(tile.keys, early) for tile, early in found] == [(size, True) for size in keys]
    assert layer._tile_of_decodes(2, few) == layer._tile_of_decodes(2 * few, 1)  # of several as before
    assert layer.alone is not tiles.kinds(32, copies=False).alone_of(512)  # larger keys, whose tile would fill a chip
    backend._chip.multiprocessors = 100
    assert [backend.variant(1, length) for length in (257, 1000)] == splits
    assert [backend.variant(2, length) for length in (257, 1000)] == [2, 4]


@pytest.mark.parametrize(("name", "lanes", "rows"), [("gqa", 32, 4), ("head of 96", 32, 1), ("gqa", 64, 16)])
def test_a_tile_of_decodes_has_a_row_for_each_head_of_a_group(name, lanes, rows):
    spec = AttentionSpec(scale=0.2, **SPECS[name])
    packed = spec.heads // spec.kv_heads
    assert tiles.rows_of_decodes(packed, lanes) == rows
    if lanes == 32:
        (layer,) = make(TritonAttention, spec, "float16", 16, layers=1)._layers
        assert {tile.rows for _, tile, _ in layer.decodes} == {rows}


def test_keys_are_gathered_where_it_pays():
    def gathered(step, **options):
        (step,) = step_inputs([step], 16)
        builder = StepBuilder(16, torch.device(DEVICE), [32], gathers_from=100, **options)
        return step, builder.build(step, 1)["causal"].gathered

    assert gathered([(1, 40), (99, 3)])[1] is None
    _, new = gathered([(1, 40), (100, 0), (2, 0)])
    assert (new.slots, new.lens, new.starts.tolist()) == (None, (100, 2), [0, 0, 100, 102])
    step, mixed = gathered([(1, 40), (100, 20), (2, 0)])
    assert (mixed.lens, mixed.starts.tolist()) == ((120, 2), [0, 0, 120, 122])
    tables, position = step.block_tables, np.array([0, 119, 0, 1])
    places = tables[[1, 1, 2, 2], position // 16] * 16 + position % 16
    assert mixed.slots[[0, 119, 120, 121]].tolist() == places.tolist()
    _, rounded = gathered([(100, 0)], keeps_dtype=False)  # what was new is not what the cache gives back
    assert len(rounded.slots) == 100


def test_few_enough_keys_are_gathered(monkeypatch):
    (step,) = step_inputs([[(100, 20)]], 16)
    for most, gathers in ((119, False), (120, True)):
        monkeypatch.setattr("tgi_core.triton.step.MOST_GATHERED", most)
        causal = StepBuilder(16, torch.device(DEVICE), [32], gathers_from=100).build(step, 1)["causal"]
        assert (causal.gathered is not None) is gathers


@pytest.mark.usefixtures("stored_plainly")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("dtype", "block_size"), EXACTNESS)
@pytest.mark.parametrize("kind", [TorchPrompts, FlashAttention2])
def test_libraries_attend_to_prompts_as_the_reference(kind, spec, dtype, block_size, request, monkeypatch):
    if kind is FlashAttention2:
        request.getfixturevalue("flash_attn")
        monkeypatch.setattr(kind, "gathers_from", 2)
    compare(kind, spec, STEPS["chunks beside decodes"], dtype, block_size)


def compare(kind, spec, steps, dtype, block_size):
    layers = 2 if spec is SPECS["gqa"] or DEVICE == "cuda" else 1  # the interpreter is slow
    spec = AttentionSpec(scale=spec["head_size"] ** -0.5, **spec)
    backends = (make(backend, spec, dtype, block_size, layers) for backend in (ReferenceAttention, kind))
    expected, found = (run(backend, spec, steps, dtype) for backend in backends)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.usefixtures("stored_plainly")
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("name", IN_ORDER_LAYERS)
@pytest.mark.parametrize(("dtype", "block_size"), EXACTNESS)
@pytest.mark.parametrize("kv_dtype", ["model", "fp8_e5m2"] if DEVICE == "cuda" else ["model"])
def test_deterministic_steps_equal_the_reference(name, steps, dtype, block_size, kv_dtype, monkeypatch):
    monkeypatch.setattr(attention, "SPLIT", 64)
    spec = AttentionSpec(scale=SPECS[name]["head_size"] ** -0.5, **SPECS[name])
    expected = run(make(ReferenceAttention, spec, dtype, block_size, kv_dtype=kv_dtype), spec, steps, dtype)
    backend = make(TritonAttention, spec, dtype, block_size, kv_dtype=kv_dtype, deterministic=True)
    found = run(backend, spec, steps, dtype)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.usefixtures("stored_plainly")
@pytest.mark.parametrize("name", ["gqa", "window"] if DEVICE == "cuda" else ["window"])
def test_deterministic_recorded_steps_give_the_same_bits(name, monkeypatch):
    monkeypatch.setattr(attention, "SPLIT", 64)
    spec = AttentionSpec(scale=0.2, **SPECS[name])
    steps = [[(150, 0), (3, 0)], [(1, 150), (1, 3)], [(1, 151), (30, 4)]]
    backend = make(TritonAttention, spec, "float32", 16, deterministic=True)
    expected = run(backend, spec, steps, "float32")
    mixture = backend.fixed(4, 40, 16, backend.mixture_variant(4, 152))
    for splits in (1, 4, 8):
        kinds = iter((None, backend.fixed(2, None, 16, splits), mixture))

        def prepare(step, kinds=kinds):
            fixed = next(kinds)
            if fixed is None:
                return backend.prepare(step)
            fixed.fill(step)
            return fixed.metadata

        assert torch.equal(run(backend, spec, steps, "float32", prepare), expected)


def test_splits_have_programs_of_their_own_only_where_programs_are_few():
    backend = make(TritonAttention, AttentionSpec(scale=0.2, **SPECS["mha, odd head size"]), "float32", 16,
                   deterministic=True)  # fmt: skip
    assert backend.variant(1, 5000) == 32
    assert backend.variant(1, 100) == 1
    assert backend.variant(1, attention.MOST_ROW_SPLITS * attention.SPLIT + 1) == 1
    assert backend.variant(backend._chip.multiprocessors, 5000) == 1


def test_a_sequence_is_split_where_that_takes_less_time_than_adding_up():
    backend = make(TritonAttention, AttentionSpec(scale=0.2, **SPECS["mha, odd head size"]), "float32", 16)
    assert backend.variant(1, attention.WHOLE_KEYS) == 1
    assert backend.variant(1, attention.WHOLE_KEYS + 1) > 1


@pytest.mark.parametrize("kv_dtype", FLOAT8)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("name", LAYERS_IN_FLOAT8)
@pytest.mark.parametrize(("dtype", "block_size"), EXACTNESS)
def test_keys_and_values_in_float8_equal_the_reference(name, steps, dtype, block_size, kv_dtype):
    spec = AttentionSpec(scale=SPECS[name]["head_size"] ** -0.5, **SPECS[name])
    reference, own = (
        make(kind, spec, dtype, block_size, kv_dtype=kv_dtype) for kind in (ReferenceAttention, TritonAttention)
    )
    expected, found = (run(backend, spec, steps, dtype) for backend in (reference, own))
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    kept = reference.caches[reference._parts[0]].view(torch.uint8).flatten()
    for number, cache in enumerate(own._caches[own._parts[0]]):
        assert cache.dtype == reference.cache_dtype
        assert torch.equal(cache.view(torch.uint8).flatten(), kept[number * cache.numel() :][: cache.numel()])
    assert 2 * own.block_bytes() == make(TritonAttention, spec, "float16", block_size).block_bytes()


@pytest.mark.parametrize("kind", [TorchPrompts, FlashAttention2])
def test_libraries_are_given_float8_in_the_models_dtype(kind, request, monkeypatch):
    dtype = "float32"
    if kind is FlashAttention2:
        request.getfixturevalue("flash_attn")
        dtype = "float16" if DEVICE == "cuda" else dtype
    monkeypatch.setattr(kind, "gathers_from", 2)
    spec, steps = AttentionSpec(scale=0.125, **SPECS["gqa"]), [[(20, 0), (9, 0)], [(1, 20), (30, 9)]]
    found, expected = (
        run(make(backend, spec, dtype, 16, kv_dtype="fp8_e5m2"), spec, steps, dtype)
        for backend in (kind, ReferenceAttention)
    )
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("kv_dtype", FLOAT8)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tokens", [32, 1], ids=["prefill", "decode"])
def test_every_number_is_rounded_to_float8_and_none_overflows(dtype, kv_dtype, tokens):
    spec = AttentionSpec(heads=2, kv_heads=2, head_size=256, scale=1.0)
    backend = make(TritonAttention, spec, dtype, 32, layers=1, kv_dtype=kv_dtype)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)  # float16 has more than float8
    larger = every.float() * 2.0**20
    for numbers in (every, larger, every.float() * 2.0**-20):
        for rows in numbers.to(DEVICE, getattr(torch, dtype)).view(-1, 32, 2, 256):
            k = rows[:tokens]
            lens = np.array([tokens], np.int32)
            step = StepInput(np.array([0, tokens], np.int32), lens, np.array([[1]], np.int32))
            backend.forward(0, torch.zeros_like(k), k, -k, backend.prepare(step))
            keys, values = (cache[1, :tokens] for cache in backend._caches[backend._parts[0]])
            assert torch.equal(keys.view(torch.uint8), round_to_cache(k, keys.dtype).view(torch.uint8))
            assert torch.equal(values.view(torch.uint8), round_to_cache(-k, keys.dtype).view(torch.uint8))
            assert keys.float().isfinite().equal(~k.isnan())


@pytest.mark.parametrize("steps", ["decode", "chunks beside decodes"])
@pytest.mark.parametrize("rotated", [16, 64])
@pytest.mark.parametrize("name", ["gqa", "soft cap"])
@pytest.mark.parametrize(("dtype", "block_size"), EXACTNESS)
def test_queries_and_keys_are_turned_on_their_way(name, rotated, steps, dtype, block_size, request):
    if steps == "decode":  # where prompts are only what was before
        request.getfixturevalue("stored_plainly")
    compare_turned(name, rotated, STEPS[steps], dtype, block_size)


@pytest.mark.parametrize(("dtype", "block_size"), EXACTNESS)
def test_keys_are_turned_before_they_are_read_beside_their_queries(dtype, block_size, monkeypatch):
    monkeypatch.setattr(TritonAttention, "gathers_from", 2)
    compare_turned("gqa", 64, [[(20, 0), (9, 0)], [(1, 20), (30, 9)]], dtype, block_size)


def compare_turned(name, rotated, steps, dtype, block_size):
    shape = SPECS[name]
    spec = AttentionSpec(scale=shape["head_size"] ** -0.5, **shape)
    half = min(rotated, spec.head_size) // 2
    expected, found = make(ReferenceAttention, spec, dtype, block_size), make(TritonAttention, spec, dtype, block_size)
    generator = torch.Generator().manual_seed(0)
    for step in step_inputs(steps, block_size):
        metadata = expected.prepare(step), found.prepare(step)
        for layer in range(2):
            q, k, v = draw(spec, step.num_tokens, dtype, generator)
            angles = torch.rand((step.num_tokens, half), generator=generator).to(DEVICE) * 6
            rotation = angles.cos(), angles.sin()
            wanted = expected.forward(layer, *rotary(q, k, *rotation), v, metadata[0])
            got = found.forward_rotated(layer, q.clone(), k.clone(), v, rotation, metadata[1])
            torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.usefixtures("stored_plainly")
@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize("name", ["gqa", "window", "alibi"])
def test_any_number_of_splits_gives_the_same(name, splits, monkeypatch):
    spec = AttentionSpec(scale=0.2, **SPECS[name])
    steps = [[(250, 0), (3, 0), (64, 0)], [(1, 250), (1, 3), (1, 64)]]
    expected = run(make(ReferenceAttention, spec, "float32", 32), spec, steps, "float32")
    backend = make(TritonAttention, spec, "float32", 32)
    monkeypatch.setattr(backend, "variant", lambda rows, longest: splits)
    torch.testing.assert_close(run(backend, spec, steps, "float32"), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def early(monkeypatch):
    """Lets decodes read their first keys early, 64 of them, however few multiprocessors there are; gives which did."""
    single = tiles.Decodes(math.inf, (tiles.Tile(16, 64, 4, 2),), early=True)
    monkeypatch.setitem(tiles.BY_LANES, 32, tiles.BY_LANES[32]._replace(decodes=(single,)))
    return launched(attention.DECODE, "SETTLED", monkeypatch)


@pytest.fixture
def settled(monkeypatch):
    """Says of steps of decodes that are not recorded, too, that they write no key that they read."""
    prepare = TritonAttention.prepare

    def settle(backend, step):
        metadata = prepare(backend, step)
        begins = step.source is not None and step.source.starts[-1] > 0
        for part in metadata.values():
            part.settled = not begins and step.num_tokens == len(step.context_lens)
        return metadata

    monkeypatch.setattr(TritonAttention, "prepare", settle)


CAN_BE_EARLY = DEVICE == "cpu" or overlap.overlaps()


@pytest.mark.usefixtures("stored_plainly")
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(
    ("name", "kv_dtype"),
    [
        ("mqa, more heads than share a program", "model"),
        ("window", "model"),
        ("window of one", "model"),
        ("alibi", "model"),
        ("window", "fp8_e5m2"),
    ],
)
def test_recorded_decodes_read_their_first_keys_early(name, kv_dtype, splits, early):
    spec = AttentionSpec(scale=0.2, **SPECS[name])
    steps = [[(250, 0), (3, 0), (64, 0)], [(1, 250), (1, 3), (1, 64)], [(1, 251), (1, 4), (1, 65)]]
    expected = run(make(ReferenceAttention, spec, "float32", 32, kv_dtype=kv_dtype), spec, steps, "float32")
    backend = make(TritonAttention, spec, "float32", 32, kv_dtype=kv_dtype)
    recorded = backend.fixed(3, None, NUM_BLOCKS // 4, splits)

    def prepare(step):
        if step.num_tokens > 3:
            return backend.prepare(step)
        recorded.fill(step)
        return recorded.metadata

    tolerance = 1e-5 if kv_dtype == "model" else 1e-4
    found = run(backend, spec, steps, "float32", prepare)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert early == [CAN_BE_EARLY] * 4  # of two layers


@pytest.mark.usefixtures("stored_plainly", "settled")
@pytest.mark.parametrize("rotated", [16, 64])
def test_decodes_that_turn_their_keys_read_the_first_ones_early(rotated, early):
    compare_turned("gqa", rotated, STEPS["decode"], "float32", 16)
    assert early == [CAN_BE_EARLY] * 4


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("columns", [1, 40])
def test_decodes_with_biases_and_sources_read_their_first_keys_early(columns, early):
    compare_encoder_decoders({"heads": 4, "kv_heads": 4, "head_size": 64}, columns)
    assert early.count(True) == 4 * CAN_BE_EARLY  # of two steps of decodes, in two layers


def test_scores_with_biases_are_of_fewer_keys_at_a_time():
    plain, biased = (tiles.fitting(tiles.SOLE, 64, 2, 227 << 10, biased=biased).keys for biased in (False, True))
    assert (plain, biased) == (256, tiles.BIASED_KEYS)


def test_rows_that_pad_a_fixed_batch_touch_nothing():
    spec = AttentionSpec(scale=0.2, **SPECS["gqa"])
    prompts, decodes = [[(40, 0), (3, 0)]], [(1, 40), (1, 3)]
    plain, fixed = (make(TritonAttention, spec, "float32", 16) for _ in range(2))
    expected = run(plain, spec, [*prompts, decodes], "float32")
    run(fixed, spec, prompts, "float32")
    buffers = fixed.fixed(8, None, NUM_BLOCKS, 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        draw(spec, 43, "float32", generator)
    *_, step = step_inputs([*prompts, decodes], 16)
    buffers.fill(step)
    found = []
    for layer in range(2):
        q, k, v = (torch.cat([x, torch.full((6, *x.shape[1:]), float("nan"), device=DEVICE)])
                   for x in draw(spec, 2, "float32", generator))  # fmt: skip
        found.append(fixed.forward(layer, q, k, v, buffers.metadata)[:2])
    found = torch.cat([part.flatten() for part in found]).cpu()
    torch.testing.assert_close(found, expected[-len(found) :], rtol=1e-5, atol=1e-5)
    for one, other in zip(plain._caches.values(), fixed._caches.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_recorded_decode_knows_the_sources_of_its_step():
    decodes = FixedDecodes(3, 2, 1, torch.device(DEVICE), cross=True)
    cross, lens = decodes.metadata["cross"], np.array([7, 9], dtype=np.int32)
    ones, tables = _starts(np.ones(2, dtype=np.int32)), np.array([[5], [6]], dtype=np.int32)
    for sources, places in ((lens, tables), (lens.copy(), tables.copy()), (lens + 1, tables), (lens + 1, tables + 1)):
        decodes.fill(StepInput(ones, lens, tables, SourceInput(ones * 0, sources, places)))
        assert cross.lens.tolist() == [*sources.tolist(), 0]
        assert cross.tables[:2].tolist() == places.flatten().tolist()
    decodes.clear()
    assert not cross.lens.any()
    decodes.fill(StepInput(ones, lens, tables, SourceInput(ones * 0, sources, places)))
    assert cross.lens.tolist() == [*sources.tolist(), 0]


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("is_divided", [False, True])
def test_what_pads_a_fixed_mixture_touches_nothing(splits, is_divided, request):
    if is_divided:
        request.getfixturevalue("divided")
    spec = AttentionSpec(scale=0.2, **SPECS["gqa"])
    steps = [[(40, 0), (3, 0), (1, 0)], [(1, 40), (30, 3), (1, 1)], [(2, 41), (1, 33), (1, 2)]]
    plain, fixed = (make(TritonAttention, spec, "float32", 16) for _ in range(2))
    expected = run(plain, spec, steps, "float32")
    buffers = fixed.fixed(5, 48, NUM_BLOCKS, splits)
    buffers.clear()
    nan = torch.full((48, spec.heads + 2 * spec.kv_heads, spec.head_size), float("nan"), device=DEVICE)
    fixed.forward(0, *nan.split((spec.heads, spec.kv_heads, spec.kv_heads), dim=1), buffers.metadata)
    generator, found = torch.Generator().manual_seed(0), []
    for step in step_inputs(steps, 16):
        buffers.fill(step)
        few = buffers.metadata["causal"].few.values()
        assert any(tiles.parts.max() > 1 for tiles in few) or not is_divided
        for layer in range(2):
            parts = (torch.cat([x, nan[step.num_tokens :, : x.shape[1]]])
                     for x in draw(spec, step.num_tokens, "float32", generator))  # fmt: skip
            found.append(fixed.forward(layer, *parts, buffers.metadata)[: step.num_tokens].flatten())
    torch.testing.assert_close(torch.cat(found).cpu(), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(plain._caches.values(), fixed._caches.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("rows", "width"), [(1, 7), (3, 5), (2, 16)])
@pytest.mark.parametrize("tokens", [None, 9])
def test_fixed_buffers_take_sequences_as_long_as_they_may_be(rows, width, tokens):
    backend = make(TritonAttention, AttentionSpec(heads=2, kv_heads=1, head_size=16, scale=1.0), "float32", 16)
    lens = np.full(rows, 16 * width, dtype=np.int32)
    tables = np.arange(rows * width, dtype=np.int32).reshape(rows, width)
    buffers = backend.fixed(rows, tokens, width, 1)
    buffers.fill(StepInput(np.arange(rows + 1, dtype=np.int32), lens, tables))
    kept = buffers.metadata["causal"]
    assert kept.tables[: tables.size].tolist() == tables.reshape(-1).tolist()
    assert kept.lens[:rows].tolist() == lens.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_poisoned_sequence_left_in_a_block_does_not_leak_into_the_next(dtype):
    backend = make(TritonAttention, AttentionSpec(heads=2, kv_heads=1, head_size=16, scale=1.0), dtype, 32, layers=1)

    def run(tokens, fill=None):
        step = StepInput(np.array([0, tokens], np.int32), np.array([tokens], np.int32), np.array([[1]], np.int32))
        qkv = torch.randn(tokens, 4, 16) if fill is None else torch.full((tokens, 4, 16), fill)
        q, k, v = qkv.to(DEVICE, getattr(torch, dtype)).split((2, 1, 1), dim=1)
        return backend.forward(0, q, k, v, backend.prepare(step))

    assert run(32, fill=float("nan")).isnan().all()
    assert not run(3).isnan().any()
    assert not run(1).isnan().any()


SOURCES = (5, 33, 150, 1)
#: (sequence, decoder tokens, decoder tokens before) step by step; the encoder reads where there are none before
SOURCE_STEPS = (
    [(0, 1, 0), (1, 1, 0)],
    [(0, 1, 1), (2, 1, 0), (1, 1, 1)],
    [(2, 1, 1)],
    [(0, 40, 0), (2, 1, 2), (3, 2, 0)],
    [(0, 1, 40), (1, 1, 2), (3, 1, 2)],
)


@pytest.mark.parametrize(
    "shape", [{"heads": 4, "kv_heads": 4, "head_size": 64}, {"heads": 6, "kv_heads": 2, "head_size": 24}]
)
@pytest.mark.parametrize("columns", [0, 1, 40])
@pytest.mark.parametrize("deterministic", [False, True])
def test_encoders_and_sources(shape, columns, deterministic, monkeypatch):
    monkeypatch.setattr(attention, "SPLIT", 64)
    compare_encoder_decoders(shape, columns, deterministic=deterministic)


@pytest.mark.parametrize("columns", [0, 40])
def test_sources_are_divided_where_decoders_read_more_than_they_hold(columns, divided):
    steps = [[(0, 60, 0), (2, 70, 0)], [(0, 1, 60), (2, 1, 70)]]
    compare_encoder_decoders({"heads": 4, "kv_heads": 4, "head_size": 32}, columns, steps)
    assert any(divided)


@pytest.mark.parametrize("columns", [0, 40])
@pytest.mark.parametrize("recorded", [False, True])
def test_sources_may_be_read_before_the_step_of_their_decoder(columns, recorded):
    shape = {"heads": 4, "kv_heads": 2, "head_size": 24}
    fixed = {}

    def apart(backend, step):
        """Metadata of a source, and how many tokens it is padded to."""
        tokens = int(step.source.starts[-1])
        if not recorded:
            return backend.prepare(step), tokens
        sources = fixed.setdefault(backend, backend.fixed(3, 200, NUM_BLOCKS, 1))
        sources.fill(step)
        return sources.metadata, 200

    found = run_encoder_decoder(TritonAttention, shape, columns, SOURCE_STEPS, apart=apart)
    expected = run_encoder_decoder(ReferenceAttention, shape, columns, SOURCE_STEPS)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def compare_encoder_decoders(shape, columns, steps=SOURCE_STEPS, *, deterministic=False):
    found = run_encoder_decoder(TritonAttention, shape, columns, steps, deterministic=deterministic)
    expected = run_encoder_decoder(ReferenceAttention, shape, columns, steps)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def run_encoder_decoder(backend_type, shape, columns, steps, apart=None, **asked):
    """Outputs of an encoder, a decoder and a cross-attention layer, for every step.

    `apart`: keys and values of sources are kept before the decoder's step, with this metadata.
    """
    specs = [AttentionSpec(scale=0.1, kind=kind, **shape) for kind in ("encoder", "causal", "cross")]
    query = KernelQuery(
        device=DEVICE, torch_device=DEVICE, dtype="float32", head_size=shape["head_size"], block_size=16,
        encoder_decoder=True, relative_bias=True, **asked,
    )  # fmt: skip
    backend = backend_type(query)
    layers = [backend.add_layer(spec) for spec in specs]
    backend.allocate(2 * NUM_BLOCKS)
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(shape["heads"], columns, generator=generator).to(DEVICE) if columns else None
    order = np.random.default_rng(0).permutation(2 * NUM_BLOCKS).astype(np.int32).reshape(len(SOURCES), -1)
    outputs = []
    for step in steps:
        sequences, lengths, before = (np.array(x, dtype=np.int32) for x in zip(*step, strict=True))
        lens = np.array(SOURCES, dtype=np.int32)[sequences]
        tables = order[sequences]
        source = SourceInput(_starts(lens * (before == 0)), lens, tables[:, :16])
        given = StepInput(_starts(lengths), lengths + before, tables[:, 16:], source)
        meta = backend.prepare(given)
        new, tokens = int(source.starts[-1]), int(lengths.sum())
        of_source = draw(specs[0], new, "float32", generator)
        q, k, v = draw(specs[0], tokens, "float32", generator)
        if new and apart:
            meta_of_sources, padded = apart(backend, given)
            filler = torch.full((padded - new, *of_source[1].shape[1:]), float("nan"), device=DEVICE)
            q_filler = torch.full((padded - new, *of_source[0].shape[1:]), float("nan"), device=DEVICE)
            rows = [torch.cat(pair) for pair in zip(of_source, (q_filler, filler, filler), strict=True)]
            outputs.append(backend.forward(layers[0], *rows, meta_of_sources, bias)[:new])
            backend.keep_source(layers[2], *rows[1:], meta_of_sources)
        elif new:
            outputs.append(backend.forward(layers[0], *of_source, meta, bias))
        outputs.append(backend.forward(layers[1], q, k, v, meta, bias))
        k, v = of_source[1:] if new and not apart else (None, None)
        outputs.append(backend.forward(layers[2], q, k, v, meta))
    return [output.cpu() for output in outputs]


def test_heads_that_are_too_large_are_refused():
    query = KernelQuery(device="cuda", dtype="float16", head_size=288, block_size=32)
    assert "256" in attention_supports(query)


@pytest.mark.usefixtures("stored_plainly")
@pytest.mark.parametrize("name", ["gqa", "window"])
def test_prompts_are_the_library_s(name, monkeypatch):
    asked = []
    attend = TorchPrompts.attend
    monkeypatch.setattr(TorchPrompts, "attend", lambda *arguments: asked.append(1) or attend(*arguments))
    spec = AttentionSpec(scale=0.125, **SPECS[name])
    run(make(TorchPrompts, spec, "float32", 16), spec, STEPS["prefill"], "float32")
    assert len(asked) == 2  # layers
    run(make(TorchPrompts, spec, "float32", 16), spec, [[(1, 0), (1, 0)]], "float32")
    assert len(asked) == 2


@pytest.mark.usefixtures("stored_plainly")
def test_what_pytorch_has_not_stays_with_triton(monkeypatch):
    monkeypatch.setattr(TorchPrompts, "attend", lambda *arguments: pytest.fail("not for PyTorch"))
    for name in ("alibi", "soft cap"):
        spec = AttentionSpec(scale=0.125, **SPECS[name])
        run(make(TorchPrompts, spec, "float32", 16), spec, STEPS["prefill"], "float32")


@pytest.mark.usefixtures("stored_plainly")
def test_short_prompts_are_not_worth_gathering(monkeypatch):
    monkeypatch.setattr(FlashAttention2, "attend", lambda *arguments: pytest.fail("not for FlashAttention"))
    spec = AttentionSpec(scale=0.125, **SPECS["gqa"])
    run(make(FlashAttention2, spec, "float32", 16), spec, STEPS["prefill"], "float32")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"dtype": "float32"}, "float32"),
        ({"head_size": 260}, "multiple of 8"),
        ({"head_size": 264}, "256"),
        ({"relative_bias": True}, "bias"),
    ],
)
def test_flash_attention_says_what_it_cannot_do(changes, reason, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.8.3")
    wish = {"device": "rocm", "dtype": "float16", "head_size": 128, "block_size": 32, **changes}
    found = flash_attention_2_supports(KernelQuery(**wish))
    assert reason in found
    assert bool(reason) == bool(found)
