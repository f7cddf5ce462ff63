"""Experts in Triton against the reference."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.errors import UnsupportedKernel
from tgi_core.kernels.reference import linear as reference_linear
from tgi_core.kernels.reference.moe import Experts
from tgi_core.triton import activation, many_rows
from tgi_core.triton.chip import chip_of
from tgi_core.triton.experts import NARROW_TILES, TILES, WIDEN_TILES, TritonExperts, experts, fixed_experts
from tgi_core.triton.linear import linear
from tgi_core.triton.sorted_experts import ROW_PAIRS, SORT, constants_of_sort, most_tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
    torch.bfloat16: {"rtol": 4e-2, "atol": 4e-2},
}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))


def layer_of(count, hidden, size, dtype=torch.float32):
    chance = torch.Generator().manual_seed(1)
    shapes = [(2 * size, hidden), (hidden, size)]
    weights = [[torch.randn(shape, generator=chance) / 8 for _ in range(count)] for shape in shapes]
    return [[linear.pack(weight.to(DEVICE, dtype)) for weight in part] for part in weights]


def tokens_of(tokens, hidden, dtype=torch.float32):
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype)


def chosen_by(tokens, each, count):
    """Experts of each token, all but the last one, and their weights."""
    chance = torch.Generator().manual_seed(2)
    chosen = torch.rand(tokens, count - 1, generator=chance).argsort(1)[:, :each].contiguous()
    return chosen.to(DEVICE), torch.rand(tokens, each, generator=chance).to(DEVICE)


@dtypes
@pytest.mark.parametrize(("tokens", "each"), [(1, 4), (4, 2), (9, 1), (40, 4), (100, 3)])
@pytest.mark.parametrize(("hidden", "size"), [(64, 96), (130, 70)] if DEVICE == "cuda" else [(66, 35)])
def test_equals_the_reference(hidden, size, tokens, each, dtype):
    parts = linear, activation.silu_and_mul, *layer_of(5, hidden, size, dtype)
    x, choice = tokens_of(tokens, hidden, dtype), chosen_by(tokens, each, 5)
    found = experts(*parts)
    assert isinstance(found, TritonExperts)
    assert not found.waits_for_device
    torch.testing.assert_close(found(x, *choice), Experts(*parts)(x, *choice), **TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [2, 30, 300, 700])
def test_tiles_of_every_size(tokens):
    parts = linear, activation.silu_and_mul, *layer_of(4, 32, 48)
    x, choice = tokens_of(tokens, 32), chosen_by(tokens, 2, 4)
    torch.testing.assert_close(experts(*parts)(x, *choice), Experts(*parts)(x, *choice), **TOLERANCE[torch.float32])


LARGE = [(4, 2048, 1408, 3000)] if DEVICE == "cuda" else []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("count", "hidden", "size", "tokens"), [(4, 72, 136, 150), (3, 136, 264, 110), *LARGE])
def test_many_pairs_of_each_expert_are_brought_together(count, hidden, size, tokens, dtype, monkeypatch):
    parts = linear, activation.silu_and_mul, *layer_of(count, hidden, size, dtype)
    x, choice = tokens_of(tokens, hidden, dtype) / hidden**0.5, chosen_by(tokens, 2, count)
    if chip_of(x.device).is_hopper:
        for kernel in (WIDEN_TILES, NARROW_TILES):
            monkeypatch.setattr(kernel, "launch", lambda *given: pytest.fail("did not copy tiles"))
    torch.testing.assert_close(experts(*parts)(x, *choice), Experts(*parts)(x, *choice), **TOLERANCE[dtype])


def test_more_tiles_than_programs_look_through_are_gathered(monkeypatch):
    parts = linear, activation.silu_and_mul, *layer_of(3, 64, 64, torch.float16)
    x, choice = tokens_of(300, 64, torch.float16) / 8, chosen_by(300, 2, 3)
    expected = experts(*parts)(x, *choice)
    monkeypatch.setattr(many_rows, "MOST_TILES", 4)
    monkeypatch.setattr(many_rows, "experts_product", lambda *given: pytest.fail("took more tiles than it looks at"))
    torch.testing.assert_close(experts(*parts)(x, *choice), expected, **TOLERANCE[torch.float16])


@dtypes
@pytest.mark.parametrize("tokens", [1, 9, 100])
def test_experts_in_fixed_tiles(tokens, dtype):
    parts = linear, activation.silu_and_mul, *layer_of(5, 66, 35, dtype)
    x, choice = tokens_of(tokens, 66, dtype), chosen_by(tokens, 3, 5)
    torch.testing.assert_close(fixed_experts(*parts)(x, *choice), Experts(*parts)(x, *choice), **TOLERANCE[dtype])


def test_fixed_tiles_refuse_quantised_experts():
    with pytest.raises(UnsupportedKernel, match="quantised"):
        fixed_experts(reference_linear.linear_int8, activation.silu_and_mul, [], [])


@pytest.mark.parametrize("tokens", [1, 20])
def test_long_rows(tokens):
    parts = linear, activation.silu_and_mul, *layer_of(3, 2100, 2)
    x, choice = tokens_of(tokens, 2100) / 8, chosen_by(tokens, 2, 3)
    torch.testing.assert_close(experts(*parts)(x, *choice), Experts(*parts)(x, *choice), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tokens", [3, 30])
@pytest.mark.parametrize("kind", ["gelu_and_mul", "gelu_tanh_and_mul"])
def test_other_activations(kind, tokens):
    parts = linear, getattr(activation, kind), *layer_of(5, 64, 32)
    x, choice = tokens_of(tokens, 64), chosen_by(tokens, 2, 5)
    torch.testing.assert_close(experts(*parts)(x, *choice), Experts(*parts)(x, *choice), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("favourite", [0, 59])
def test_all_tokens_may_choose_one_of_many(favourite):
    parts = linear, activation.silu_and_mul, *layer_of(60, 32, 16)
    x, weights = tokens_of(50, 32), torch.ones(50, 1, device=DEVICE)
    choice = torch.full((50, 1), favourite, device=DEVICE), weights
    torch.testing.assert_close(experts(*parts)(x, *choice), Experts(*parts)(x, *choice), **TOLERANCE[torch.float32])


def test_tokens_do_not_depend_on_those_beside_them():
    layer = experts(linear, activation.silu_and_mul, *layer_of(5, 40, 16))
    x, (chosen, weights) = tokens_of(20, 40), chosen_by(20, 2, 5)
    alone = torch.cat([layer(x[i : i + 1], chosen[i : i + 1], weights[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(layer(x, chosen, weights), alone, rtol=1e-4, atol=1e-5)


def test_a_token_that_is_not_a_number_hurts_no_other():
    layer = experts(linear, activation.silu_and_mul, *layer_of(5, 64, 32))
    x, choice = tokens_of(20, 64), chosen_by(20, 2, 5)
    expected = layer(x, *choice)
    x[3] = float("nan")
    found = layer(x, *choice)
    assert found[3].isnan().all()
    others = torch.arange(20, device=DEVICE) != 3
    assert torch.equal(found[others], expected[others])


def test_strided_tokens():
    layer = experts(linear, activation.silu_and_mul, *layer_of(5, 64, 32))
    wide = tokens_of(20, 128)
    for tokens in (2, 20):
        x, choice = wide[:tokens, :64], chosen_by(tokens, 2, 5)
        torch.testing.assert_close(layer(x, *choice), layer(x.contiguous(), *choice))
    assert layer(wide[:0, :64], *chosen_by(0, 2, 5)).shape == (0, 64)


@pytest.mark.parametrize(("pairs", "count", "rows"), [(1, 3, 16), (40, 3, 16), (1500, 60, 16), (2100, 8, 64)])
def test_pairs_are_sorted_into_tiles_of_one_expert(pairs, count, rows):
    chosen = torch.randint(0, count, (pairs,), generator=torch.Generator().manual_seed(4)).to(DEVICE)
    most = most_tiles(pairs, count, rows)
    sorting = constants_of_sort(pairs, count, most, rows)
    order = torch.full((most * rows,), -7, dtype=torch.int32, device=DEVICE)
    found = torch.full((sorting["TILES"],), -7, dtype=torch.int32, device=DEVICE)
    places = torch.full((pairs,), -7, dtype=torch.int32, device=DEVICE)
    SORT.launch((count, 1, 1), (chosen, order, places, found, pairs), sorting)
    expected = []
    for expert in range(count):
        own = (chosen == expert).nonzero().flatten().tolist()
        expected += own + [pairs] * (-len(own) % rows)
    assert order.tolist()[: len(expected)] == expected
    assert order[places].tolist() == list(range(pairs))
    tiles = [int(chosen[tile[0]]) for tile in zip(*[iter(expected)] * rows, strict=True)]
    assert found.tolist() == tiles + [-1] * (len(found) - len(tiles))


def test_there_are_tiles_enough_whatever_is_chosen():
    for pairs in (*range(1, 70), 1000):
        for count in (1, 2, 8, 60):
            lonely = min(count - 1, pairs - 1)  # experts with one pair; the others are one expert's
            assert most_tiles(pairs, count, 16) >= lonely + -(-(pairs - lonely) // 16)
    assert ROW_PAIRS >= 1
    assert list(TILES) == sorted(TILES)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="PyTorch sees no GPU")
@pytest.mark.parametrize("tokens", [1, 4, 20, 300])
def test_a_recording_serves_whatever_is_chosen(tokens):
    layer = experts(linear, activation.silu_and_mul, *layer_of(8, 256, 128, torch.bfloat16))
    x = tokens_of(tokens, 256, torch.bfloat16)
    chosen, weights = chosen_by(tokens, 2, 8)
    layer(x, chosen, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x, chosen, weights)
    for shift in range(3):
        chosen.add_(shift).remainder_(8)
        graph.replay()
        assert torch.equal(out, layer(x, chosen, weights))


def test_what_is_stored_otherwise_goes_to_the_reference():
    weights = layer_of(5, 16, 16)
    assert isinstance(experts(linear, F.silu, *weights), Experts)
    assert isinstance(experts(reference_linear.linear_int8, activation.silu_and_mul, *weights), Experts)
    assert isinstance(experts(reference_linear.linear, activation.silu_and_mul, *weights), TritonExperts)
