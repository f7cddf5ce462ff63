"""The Triton kernels against the reference."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels.ops import Frequencies, GatedLinearKernel, LateFrequencies
from tgi_core.kernels.reference import activation as reference_activation
from tgi_core.kernels.reference import norm as reference_norm
from tgi_core.kernels.reference.rotary import angles as reference_angles
from tgi_core.kernels.reference.rotary import rotary as reference_rotary
from tgi_core.kernels.reference.sample import greedy as reference_greedy
from tgi_core.triton import activation, norm
from tgi_core.triton import linear as triton_linear
from tgi_core.triton.chip import chip_of
from tgi_core.triton.linear import fixed_linear, linear
from tgi_core.triton.linear_tiles import HeldTile, RowTile, Tile, fixed_tile, held_tile, is_held_late, row_tile, tile_of
from tgi_core.triton.look_up import look_up
from tgi_core.triton.rotary import angles, rotary
from tgi_core.triton.sample import greedy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 5e-6},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2} if DEVICE == "cuda" else {"rtol": 5e-2, "atol": 1e-1},
}  # the interpreter cuts bfloat16 where a GPU rounds
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))
shapes = pytest.mark.parametrize("shape", [(1, 16), (3, 576), (7, 100), (5, 5120)])


def randn(*shape, dtype, seed=1):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3).to(DEVICE, dtype)


@dtypes
@shapes
def test_rms_norm(shape, dtype):
    x, weight = randn(*shape, dtype=dtype), randn(shape[1], dtype=dtype)
    expected = reference_norm.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(norm.rms_norm(x, weight, 1e-6), expected, **TOLERANCE[dtype])


@dtypes
@shapes
def test_norms_of_sums_write_the_sum_over_the_residual(shape, dtype):
    x, residual, weight = (randn(*s, dtype=dtype, seed=i) for i, s in enumerate((shape, shape, shape[1:])))
    expected = reference_norm.add_rms_norm(x, residual, weight, 1e-6)
    with_layer = reference_norm.add_layer_norm(x, residual, weight, weight, 1e-5)
    layer = norm.add_layer_norm(x, residual.clone(), weight, weight, 1e-5)
    torch.testing.assert_close(layer, with_layer, **TOLERANCE[dtype])
    found = norm.add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(found, expected, **TOLERANCE[dtype])
    assert torch.equal(residual, found[1])


@dtypes
@shapes
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm(shape, with_bias, dtype):
    x, weight = randn(*shape, dtype=dtype) + 5, randn(shape[1], dtype=dtype)
    bias = randn(shape[1], dtype=dtype) if with_bias else None
    expected = reference_norm.layer_norm(x, weight, bias, 1e-5)
    torch.testing.assert_close(norm.layer_norm(x, weight, bias, 1e-5), expected, **TOLERANCE[dtype])


@dtypes
def test_rms_norm_of_strided_heads(dtype):
    x, weight = randn(5, 9, 64, dtype=dtype)[:, 2:6], randn(64, dtype=dtype)
    expected = reference_norm.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(norm.rms_norm(x, weight, 1e-6), expected, **TOLERANCE[dtype])


@dtypes
@pytest.mark.parametrize(("head_size", "rotated", "heads"), [(64, 64, 4), (80, 32, 17), (40, 20, 8), (96, 96, 1)])
def test_rotary_of_strided_tokens(head_size, rotated, heads, dtype):
    qkv = randn(5, heads + 5, head_size, dtype=dtype)
    angles = torch.randn(5, rotated // 2, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    q, k, v = qkv.split((heads, 3, 2), dim=1)
    expected, before = reference_rotary(q, k, angles.cos(), angles.sin()), v.clone()
    torch.testing.assert_close(rotary(q, k, angles.cos(), angles.sin()), expected, **TOLERANCE[dtype])
    assert torch.equal(v, before)


def test_angles_of_two_contexts():
    inverse, later = (theta ** -(torch.arange(20).to(DEVICE) / 20) for theta in (1e4, 5e5))
    positions = torch.tensor([0, 1, 63, 64, 1000, 131_071, 1_000_000], device=DEVICE)
    for late in (None, LateFrequencies(64, later)):
        expected = reference_angles(positions, Frequencies(inverse, 1.5, late))
        for found, wanted in zip(angles(positions, Frequencies(inverse, 1.5, late)), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(9, 40), (70, 5000), (300,)])
def test_rows_of_tables(shape):
    for dtype in (torch.int64, torch.bfloat16):
        table = torch.arange(math.prod(shape), device=DEVICE).view(shape).to(dtype)
        rows = torch.tensor([3, 0, 8, 3], device=DEVICE)
        assert torch.equal(look_up(table, rows), table[rows])
        assert look_up(table, rows[:0]).shape == (0, *shape[1:])


def test_rows_that_lie_apart():
    whole = torch.randn(9, 100, device=DEVICE)
    rows = torch.tensor([8, 0, 1, 0], device=DEVICE)[::2]
    for table in (whole[:, :64], whole[:, ::2], whole[:, 3]):
        assert torch.equal(look_up(table, rows), table[[8, 1]])


@dtypes
@pytest.mark.parametrize("name", ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"])
@pytest.mark.parametrize("shape", [(1, 16), (3, 5000)])
def test_activations(name, shape, dtype):
    x = randn(*shape, dtype=dtype)
    expected = getattr(reference_activation, name)(x)
    torch.testing.assert_close(getattr(activation, name)(x), expected, **TOLERANCE[dtype])
    huge = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4, 3.0, 1, 1, 1, 1, 1, 1]], dtype=dtype, device=DEVICE)
    torch.testing.assert_close(
        getattr(activation, name)(huge), getattr(reference_activation, name)(huge), **TOLERANCE[dtype]
    )


@dtypes
@shapes
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_activation(name, shape, dtype):
    x = randn(*shape, dtype=dtype)
    expected = getattr(reference_activation, name)(x)
    torch.testing.assert_close(getattr(activation, name)(x), expected, **TOLERANCE[dtype])


@dtypes
@pytest.mark.parametrize("size", [5, 4096, 20000])
def test_greedy(size, dtype):
    logits = randn(3, size, dtype=dtype)
    logits[1, 2] = logits[1, -1] = 30.0  # the first of equals
    ids, logprobs = greedy(logits)
    expected_ids, expected = reference_greedy(logits)
    assert ids.tolist()[1] == 2
    assert torch.equal(ids, expected_ids) or torch.equal(logits.gather(1, ids[:, None]), logits.amax(1, keepdim=True))
    torch.testing.assert_close(logprobs, expected, rtol=1e-4, atol=1e-4)


@dtypes
@pytest.mark.parametrize(("outputs", "inputs"), [(5, 64), (33, 3000), (2050, 72)])
@pytest.mark.parametrize("rows", [1, 5, 33, 65])
@pytest.mark.parametrize("linear", [linear, fixed_linear])
def test_linear(linear, rows, outputs, inputs, dtype):
    x, weight, bias = (randn(*s, dtype=dtype, seed=s[0]) / 3 for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    for added in (None, bias):
        expected = torch.nn.functional.linear(x.double(), weight.double(), added if added is None else added.double())
        error = (linear(x, linear.pack(weight), added).double() - expected).norm() / expected.norm()
        assert error < {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]


@dtypes
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 33, 72), (1, 9, 2100), (33, 1100, 136)])
@pytest.mark.parametrize("linear", [linear, fixed_linear])
def test_gated_linear(linear, rows, outputs, inputs, kind, dtype):
    """Gate and up are rounded as if they had been written to memory."""
    x, weight = randn(rows, inputs, dtype=dtype), randn(2 * outputs, inputs, dtype=dtype, seed=1) / inputs**0.5
    activate = getattr(activation, f"{kind}_and_mul")
    expected = activate(torch.nn.functional.linear(x, weight)).double()
    assert isinstance(linear, GatedLinearKernel)
    for bias in (None, randn(2 * outputs, dtype=dtype, seed=2)):
        if bias is not None:
            expected = activate(torch.nn.functional.linear(x, weight, bias)).double()
        error = (linear.gated(x, linear.pack(weight), bias, activate).double() - expected).norm() / expected.norm()
        assert error < {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("splits", [2, 3, 4])  # the last of four has none
def test_inputs_divided_over_programs(splits, has_bias, rows, monkeypatch):
    if not chip_of(torch.device(DEVICE)).is_hopper:
        pytest.skip("PyTorch multiplies few rows on this chip")
    dtype, tile = torch.bfloat16, Tile(16, 64, 2, 3, splits)
    monkeypatch.setattr(triton_linear, "tile_of", lambda rows, outputs, inputs: tile)
    monkeypatch.setattr(triton_linear, "held_tile", lambda rows, outputs, inputs: None)
    x, weight = randn(rows, 300, dtype=dtype), randn(70, 300, dtype=dtype, seed=1) / 17
    bias = randn(70, dtype=dtype, seed=2) if has_bias else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    first, again = (linear(x, weight, bias) for _ in range(2))  # what the first leaves serves the second
    assert (first.double() - expected).norm() / expected.norm() < 1e-2
    assert torch.equal(first, again)
    found = linear.gated(x, weight, None, activation.silu_and_mul)  # in one part
    torch.testing.assert_close(found, activation.silu_and_mul(linear(x, weight, None)), **TOLERANCE[dtype])


def test_weights_with_few_outputs_are_divided():
    shapes = (2048, 2048), (4096, 14336), (4096, 4096), (6144, 4096), (28672, 4096)
    assert [tile_of(8, *shape).splits for shape in shapes] == [4, 2, 2, 1, 1]


def test_only_narrow_products_let_the_next_kernel_begin_late(monkeypatch):
    if not chip_of(torch.device(DEVICE)).is_hopper:
        pytest.skip("PyTorch multiplies few rows on this chip")
    seen, launch = [], triton_linear._FEW_ROWS_PRODUCT.launch

    def see(grid, arguments, constants, *how):
        seen.append(constants["LATE"])
        launch(grid, arguments, constants, *how)

    monkeypatch.setattr(triton_linear._FEW_ROWS_PRODUCT, "launch", see)
    for outputs, inputs in ((64, 64), (64, 128), (96, 64)):  # behind attention, down, and its queries
        linear(randn(9, inputs, dtype=torch.bfloat16), randn(outputs, inputs, dtype=torch.bfloat16), None)
    linear.gated(randn(9, 64, dtype=torch.bfloat16), randn(64, 64, dtype=torch.bfloat16), None, activation.silu_and_mul)
    assert seen == [True, True, False, False]


def test_products_of_many_rows_are_left_to_pytorch():
    shapes = (2048, 2048), (4096, 4096), (3072, 576), (6144, 4096), (28672, 4096)
    assert [tile_of(64, *shape) is None for shape in shapes] == [True, False, True, True, False]
    assert all(tile_of(65, *shape) is None for shape in shapes)
    small = (576, 576), (960, 576), (576, 1536)
    assert all(tile_of(256, *shape) and not tile_of(257, *shape) for shape in small)


def test_more_tiles_than_are_counted_are_refused(monkeypatch):
    if not chip_of(torch.device(DEVICE)).is_hopper:
        pytest.skip("PyTorch multiplies few rows on this chip")
    monkeypatch.setattr(triton_linear, "MOST_GROUPS", 2)
    monkeypatch.setattr(triton_linear, "held_tile", lambda rows, outputs, inputs: None)
    monkeypatch.setattr(triton_linear, "tile_of", lambda rows, outputs, inputs: Tile(16, 64, 2, 3, 2))
    with pytest.raises(ValueError, match="more than 2 tiles"):
        linear(randn(3, 64, dtype=torch.bfloat16), randn(40, 64, dtype=torch.bfloat16), None)


@dtypes
@pytest.mark.parametrize("tile", [(2, 64, 4), (4, 32, 1), (2, 512, 8)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_one_row_in_every_tile(has_bias, tile, dtype, monkeypatch):
    """With gate and up a program takes half as many outputs, as few as one."""
    monkeypatch.setattr(triton_linear, "row_tile", lambda outputs, inputs: RowTile(*tile))
    x, weight = randn(1, 300, dtype=dtype), randn(70, 300, dtype=dtype, seed=1) / 17
    bias = randn(70, dtype=dtype, seed=2) if has_bias else None
    plain = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert (linear(x, weight, bias).double() - plain).norm() / plain.norm() < tolerance
    found = linear.gated(x, weight, bias, activation.silu_and_mul)
    torch.testing.assert_close(found, activation.silu_and_mul(linear(x, weight, bias)), **TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.parametrize("tile", [(16, 64, 2), (32, 64, 1), (16, 128, 4), (16, 1024, 4), (16, 2048, 8)], ids=str)
def test_a_few_rows_in_every_tile_of_held_weights(tile, rows, monkeypatch):
    if not chip_of(torch.device(DEVICE)).is_hopper:
        pytest.skip("PyTorch multiplies few rows on this chip")
    asked = []
    monkeypatch.setattr(triton_linear, "held_tile", lambda *shape: asked.append(shape) or HeldTile(*tile))
    dtype = torch.bfloat16
    x, weight = randn(rows, 3, 130, dtype=dtype)[:, 1], randn(70, 130, dtype=dtype, seed=1) / 11
    for bias in (None, randn(70, dtype=dtype, seed=2)):
        expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        assert (linear(x, weight, bias).double() - expected).norm() / expected.norm() < 1e-2
    found = linear.gated(x, weight, None, activation.silu_and_mul)
    torch.testing.assert_close(found, activation.silu_and_mul(linear(x, weight, None)), **TOLERANCE[dtype])
    assert asked == [(rows, 70, 130)] * 4


def test_weights_are_held_where_they_are_few():
    few, many = ((576, 576), (3072, 576), (2048, 2048), (896, 4864)), ((2048, 5120), (4096, 4096), (1024, 14336))
    for rows in (2, 8):
        assert [held_tile(rows, *shape) is not None for shape in (*few, *many)] == [True] * 4 + [False] * 3
    assert all(held_tile(9, *shape) is None for shape in few)


def test_held_weights_with_fewer_outputs_than_inputs_let_the_next_kernel_begin_late():
    late = (576, 1536, ""), (1024, 2048, "")
    early = (576, 576, ""), (576, 1536, "silu"), (960, 576, ""), (2048, 4096, "")
    assert all(is_held_late(*shape) for shape in late)
    assert not any(is_held_late(*shape) for shape in early)


@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [(960, 576), (2048, 2048), (4096, 14336), (4096, 4096), (6144, 2048), (10240, 2048), (28672, 4096)],
)
def test_registers_hold_what_waits_for_one_row(outputs, inputs):
    rows, columns, warps = row_tile(outputs, inputs)
    assert rows % 2 == 0  # gate and up
    most = 64 if outputs == 6144 else 32  # of queries, keys and values: all programs fit on the chip at once
    assert rows * columns // (32 * warps) <= most  # numbers of each lane


def test_linear_of_rows_that_lie_apart():
    x, weight = randn(6, 3, 64, dtype=torch.bfloat16), randn(40, 64, dtype=torch.bfloat16)
    for apart in (x[:, 1], x[:, 1, ::2].repeat(1, 2)[:, :64], x.transpose(1, 2)[:, :, 0]):
        torch.testing.assert_close(linear(apart, weight, None), linear(apart.contiguous(), weight, None))


def test_tiles_of_a_weight_fit_into_the_chip():
    assert fixed_tile(28672, 2, 232448).tile.outputs == 128
    assert fixed_tile(28672, 2, 65536).tile.outputs == 64
    assert fixed_tile(576, 2, 232448).tile.outputs == 16
    for outputs in (16, 576, 4096, 28672):
        for itemsize in (2, 4):
            for shared in (65536, 101376, 166912, 232448):
                rows, tile = fixed_tile(outputs, itemsize, shared)
                assert (rows + tile.outputs) * tile.inputs * tile.stages * itemsize <= shared
    assert fixed_linear(torch.zeros(0, 64, device=DEVICE), torch.zeros(8, 64, device=DEVICE), None).shape == (0, 8)


def test_linear_leaves_other_activations_to_pytorch():
    x, weight = randn(2, 64, dtype=torch.bfloat16), randn(40, 64, dtype=torch.bfloat16)
    assert linear.gated(x, weight, None, torch.relu).shape == (2, 40)


def test_greedy_says_that_a_row_is_not_a_number():
    logits = randn(4, 50, dtype=torch.float32)
    logits[0, 7], logits[1], logits[2] = float("nan"), float("nan"), float("-inf")
    ids, logprobs = greedy(logits)
    assert logprobs.isnan().tolist() == [True, True, True, False]
    assert ids[2] == 0  # the first, as elsewhere
    assert ((ids >= 0) & (ids < 50)).all()
