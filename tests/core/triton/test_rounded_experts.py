"""Experts with weights of 4 and 8 bits, in Triton's interpreter, against the reference over the same levels."""

import logging
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels.reference import activation, affine
from tgi_core.kernels.reference import linear as reference
from tgi_core.kernels.reference.moe import Experts
from tgi_core.quantization.int4 import CalibratedLinear
from tgi_core.testing.packed import rounded as rounded_parts
from tgi_core.triton import experts as triton_experts
from tgi_core.triton import rounded, rounded_experts
from tgi_core.triton.chip import Chip
from tgi_core.triton.experts import experts
from tgi_core.triton.rounded_experts import TILES, RoundedExperts, fitting
from tgi_core.triton.sorted_experts import ROW_PAIRS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COUNT, HIDDEN, SIZE = 4, 72, 40
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 3.2e-2}
REFERENCE = {
    "linear_int8": reference.linear_int8,
    "linear_int4": reference.linear_int4,
    "linear_affine": affine.linear_affine,
}


def weights_of(hidden=HIDDEN, size=SIZE, count=COUNT, dtype=torch.float16):
    """Of each expert's gate and up, and down."""
    chance = torch.Generator().manual_seed(1)
    shapes = (2 * size, hidden), (hidden, size)
    parts = [[torch.randn(shape, generator=chance) * shape[1] ** -0.5 for _ in range(count)] for shape in shapes]
    return [[weight.to(DEVICE, dtype) for weight in part] for part in parts]


def stored(weights, group, *, bits=4, any_order=False):
    """Codes of each."""
    chance = torch.Generator().manual_seed(2)

    def codes(weight):
        parts = rounded_parts(weight.cpu().float(), bits, group, chance, any_order=any_order)
        groups = parts.groups.long()
        return affine.encode(parts.levels.T, parts.zeros[groups].T, parts.scales[groups].T).to(DEVICE)

    return [[codes(weight) for weight in part] for part in weights]


def choice_of(tokens, each, count=COUNT):
    """Experts of each token, all but the last one, and their weights."""
    chance = torch.Generator().manual_seed(3)
    chosen = torch.rand(tokens, count - 1, generator=chance).argsort(1)[:, :each].contiguous()
    return chosen.to(DEVICE), torch.rand(tokens, each, generator=chance).to(DEVICE)


def tokens_of(tokens, hidden=HIDDEN, dtype=torch.float16):
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(4)).to(DEVICE, dtype)


def made(op, weights, kind=activation.silu_and_mul):
    """(in Triton, by the reference)"""
    function, defined = getattr(rounded, op), REFERENCE[op]
    found = experts(function, kind, *([function.pack(weight) for weight in part] for part in weights))
    return found, Experts(defined, kind, *([defined.pack(weight) for weight in part] for part in weights))


def error(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


def assert_equal(found, expected, tokens, each, hidden=HIDDEN, dtype=torch.float16):
    assert isinstance(found, RoundedExperts)
    assert not found.waits_for_device
    x, choice = tokens_of(tokens, hidden, dtype), choice_of(tokens, each)
    y = found(x, *choice)
    assert y.dtype == dtype
    assert error(y, expected(x.float(), *choice)) < TOLERANCE[dtype]


@pytest.mark.parametrize("op", ["linear_int8", "linear_int4"])
def test_rounded_experts_equal_the_reference(op):
    found, expected = made(op, weights_of())
    for tokens, each in ((1, 1), (1, 2), (3, 2), (17, 1), (70, 2)):
        assert_equal(found, expected, tokens, each)


@pytest.mark.parametrize("op", ["linear_int8", "linear_int4"])
def test_rounded_experts_of_bfloat16_equal_the_reference(op):
    found, expected = made(op, weights_of(32, 24, dtype=torch.bfloat16))
    for tokens in (1, 17):
        assert_equal(found, expected, tokens, 2, 32, torch.bfloat16)


@pytest.mark.parametrize(
    ("bits", "group", "any_order"),
    [(4, 32, False), (4, -1, False), (8, 16, False), (4, 16, True), (4, 24, True), (2, 32, True), (8, 40, True)],
)
def test_stored_experts_equal_the_reference(bits, group, any_order):
    found, expected = made("linear_affine", stored(weights_of(), group, bits=bits, any_order=any_order))
    assert (found.gate_up.order is not None) is any_order
    for tokens, each in ((1, 2), (3, 1), (17, 2)):
        assert_equal(found, expected, tokens, each)


@pytest.mark.parametrize(("op", "hidden", "size"), [("linear_int8", 130, 35), ("linear_int4", 300, 33)])
def test_sizes_that_no_tile_divides(op, hidden, size):
    found, expected = made(op, weights_of(hidden, size))
    for tokens in (1, 17):
        assert_equal(found, expected, tokens, 2, hidden)


def test_orders_of_different_lengths_are_filled_up():
    shares = [[codes[:, :44] for codes in part] for part in stored(weights_of(), 24, any_order=True)]
    packed = [rounded.linear_affine.pack(codes) for codes in shares[1]]
    assert len({len(part.order) for part in packed}) > 1
    whole = rounded_experts.together(packed)
    assert whole.order.shape == (COUNT, max(len(part.order) for part in packed))
    for expert, part in enumerate(packed):
        places = whole.order[expert]
        assert torch.equal(places[: len(part.order)], part.order)
        assert (places[len(part.order) :] == -1).all()


def test_a_rank_multiplies_its_share_of_ordered_inputs():
    gate_up, down = stored(weights_of(size=88), 24, any_order=True)
    parts = [torch.cat((codes[:44], codes[88:132])) for codes in gate_up], [codes[:, :44] for codes in down]
    for tokens in (1, 17):
        assert_equal(*made("linear_affine", parts), tokens, 2)


@pytest.mark.parametrize("tokens", [2, 17])
@pytest.mark.parametrize("kind", ["gelu_and_mul", "gelu_tanh_and_mul"])
def test_other_activations(kind, tokens):
    assert_equal(*made("linear_int8", weights_of(), getattr(activation, kind)), tokens, 2)


@pytest.mark.parametrize("pairs_of_expert", TILES)
def test_tiles_of_every_size(pairs_of_expert, monkeypatch):
    found, expected = made("linear_int4", weights_of(64, 48))
    monkeypatch.setattr(rounded_experts, "fitting", lambda pairs, shared: fitting(pairs_of_expert, shared))
    assert_equal(found, expected, 20, 2, 64)


@pytest.mark.parametrize("favourite", [0, 19])
def test_all_tokens_may_choose_one_of_many(favourite):
    found, expected = made("linear_int4", weights_of(32, 16, count=20))
    x, weights = tokens_of(30, 32), torch.ones(30, 1, device=DEVICE)
    chosen = torch.full((30, 1), favourite, device=DEVICE)
    assert error(found(x, chosen, weights), expected(x.float(), chosen, weights)) < 2e-3


@pytest.mark.parametrize("op", ["linear_int8", "linear_int4"])
def test_a_token_that_is_not_a_number_hurts_no_other(op):
    layer, _ = made(op, weights_of(32, 24))
    for tokens in (3, 17):
        x, choice = tokens_of(tokens, 32), choice_of(tokens, 2)
        expected = layer(x, *choice)
        x[1] = float("nan")
        found = layer(x, *choice)
        assert found[1].isnan().all()
        others = torch.arange(tokens, device=DEVICE) != 1
        assert torch.equal(found[others], expected[others])


def test_no_tokens_give_no_tokens():
    layer, _ = made("linear_int8", weights_of())
    assert layer(tokens_of(0), *choice_of(0, 2)).shape == (0, HIDDEN)


def test_weights_take_as_many_bits_as_they_have():
    layer, _ = made("linear_affine", stored(weights_of(256, 256, 2), 128))
    assert layer.gate_up.levels.nbytes * 2 == 2 * 512 * 256
    assert layer.down.levels.nbytes * 2 == 2 * 256 * 256


def test_strided_tokens_are_read_where_they_lie():
    layer, _ = made("linear_int8", weights_of())
    wide = tokens_of(20, 2 * HIDDEN)
    for tokens in (2, 20):
        x, choice = wide[:tokens, :HIDDEN], choice_of(tokens, 2)
        assert torch.equal(layer(x, *choice), layer(x.contiguous(), *choice))


def test_calibrated_weights_are_multiplied_by_what_rounds_them():
    kernel = CalibratedLinear(rounded.linear_int4)
    parts = [[kernel.pack(weight) for weight in part] for part in weights_of()]
    assert isinstance(experts(kernel, activation.silu_and_mul, *parts), Experts)
    kernel.watch()
    kernel.learn()
    assert isinstance(experts(kernel, activation.silu_and_mul, *parts), RoundedExperts)


def test_experts_that_are_laid_out_differently_become_alike():
    kinds = (4, 32, False), (4, 16, True), (8, 64, False), (4, 24, True)
    layouts = [stored(weights_of(count=1), group, bits=bits, any_order=order) for bits, group, order in kinds]
    parts = [[codes for part in layouts for codes in part[which]] for which in (0, 1)]
    packed = [rounded.linear_affine.pack(codes) for codes in parts[0]]
    assert len({(part.block, part.halves) for part in packed}) > 2
    assert_equal(*made("linear_affine", parts), 1, 3)
    assert_equal(*made("linear_affine", parts), 17, 2)


def test_chips_whose_matrix_units_triton_does_not_use_take_the_reference_with_a_reason(monkeypatch, caplog):
    chip = SimpleNamespace(**{**vars(Chip(torch.device(DEVICE))), "has_matrix_units": False})
    monkeypatch.setattr(triton_experts, "chip_of", lambda device: chip)
    packed = [[rounded.linear_int8.pack(weight) for weight in part] for part in weights_of()]
    with caplog.at_level(logging.INFO):
        found = experts(rounded.linear_int8, activation.silu_and_mul, *packed)
    assert isinstance(found, Experts)
    assert "matrix units" in caplog.text


def test_what_is_stored_in_yet_another_way_goes_to_the_reference():
    weights = weights_of()
    assert isinstance(experts(reference.linear_int8, activation.silu_and_mul, *weights), Experts)
    packed = [[rounded.linear_int8.pack(weight) for weight in part] for part in weights]
    assert isinstance(experts(rounded.linear_int8, torch.nn.functional.silu, *packed), Experts)


@pytest.mark.parametrize("shared_bytes", [1 << 16, 101376, 166912, 232448])
def test_tiles_fit_into_shared_memory(shared_bytes):
    for pairs in (1, 16, 17, 100, 1000):
        tile = fitting(pairs, shared_bytes)
        assert (tile.columns + 4 * tile.rows) * tile.inputs * tile.stages <= shared_bytes
    assert list(TILES) == sorted(TILES)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="PyTorch sees no GPU")
@pytest.mark.parametrize("op", ["linear_int8", "linear_int4"])
@pytest.mark.parametrize("tokens", [1, ROW_PAIRS // 2, 20, 300])
def test_a_recording_serves_whatever_is_chosen(op, tokens):
    layer, _ = made(op, weights_of(256, 128, 8, torch.bfloat16))
    x, (chosen, weights) = tokens_of(tokens, 256, torch.bfloat16), choice_of(tokens, 2, 8)
    layer(x, chosen, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x, chosen, weights)
    for shift in range(3):
        chosen.add_(shift).remainder_(8)
        graph.replay()
        assert torch.equal(out, layer(x, chosen, weights))
