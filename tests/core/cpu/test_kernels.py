"""The CPU's own kernels against the reference."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tgi_core.cpu import kernels, native
from tgi_core.cpu.linear import native_linear, native_linear_int4, native_linear_int8, onednn_linear, onednn_supports
from tgi_core.kernels.ops import KernelQuery
from tgi_core.kernels.reference import activation
from tgi_core.kernels.reference.linear import quantize_groups, quantize_rows
from tgi_core.kernels.reference.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from tgi_core.kernels.reference.rotary import rotary
from tgi_core.kernels.reference.sample import greedy

pytestmark = pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable() or "native kernels are there")

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 5e-6}, torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2}}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))
sizes = pytest.mark.parametrize("shape", [(1, 16), (3, 576), (7, 100), (200, 640)])


def randn(*shape, dtype):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)


@dtypes
@sizes
def test_rms_norm(shape, dtype):
    x, weight = randn(*shape, dtype=dtype), randn(shape[1], dtype=dtype)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6), **TOLERANCE[dtype])


@dtypes
@sizes
def test_add_rms_norm(shape, dtype):
    x, residual, weight = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype), randn(shape[1], dtype=dtype)
    expected = add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(kernels.add_rms_norm(x, residual, weight, 1e-6), expected, **TOLERANCE[dtype])


@dtypes
def test_rms_norm_of_strided_heads(dtype):
    x, weight = randn(5, 9, 64, dtype=dtype)[:, 2:6], randn(64, dtype=dtype)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6), **TOLERANCE[dtype])


@dtypes
@pytest.mark.parametrize(("head_size", "rotated"), [(64, 64), (80, 32), (40, 20)])
def test_rotary_of_strided_tokens(head_size, rotated, dtype):
    qkv = randn(5, 9, head_size, dtype=dtype)
    angles = torch.randn(5, rotated // 2)
    q, k, v = qkv.split((4, 3, 2), dim=1)
    expected, before = rotary(q, k, angles.cos(), angles.sin()), v.clone()
    torch.testing.assert_close(kernels.rotary(q, k, angles.cos(), angles.sin()), expected, **TOLERANCE[dtype])
    assert torch.equal(v, before)


@dtypes
@sizes
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm_with_and_without_residual(shape, with_bias, dtype):
    x, residual, weight = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype) + 5, randn(shape[1], dtype=dtype)
    bias = randn(shape[1], dtype=dtype) if with_bias else None
    expected = layer_norm(x, weight, bias, 1e-5)
    torch.testing.assert_close(kernels.layer_norm(x, weight, bias, 1e-5), expected, **TOLERANCE[dtype])
    both = add_layer_norm(x, residual, weight, bias, 1e-5)
    torch.testing.assert_close(kernels.add_layer_norm(x, residual, weight, bias, 1e-5), both, **TOLERANCE[dtype])


@dtypes
@sizes
@pytest.mark.parametrize("name", ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "gelu", "gelu_tanh"])
def test_activations(name, shape, dtype):
    x = randn(*shape, dtype=dtype)
    expected = getattr(activation, name)(x)
    torch.testing.assert_close(getattr(kernels, name)(x), expected, **TOLERANCE[dtype])
    huge = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4, 3.0]], dtype=dtype)
    torch.testing.assert_close(getattr(kernels, name)(huge), getattr(activation, name)(huge))


@dtypes
@pytest.mark.parametrize("vocab", [5, 16, 1000, 49152])
def test_greedy(vocab, dtype):
    logits = randn(4, vocab, dtype=dtype)
    logits[1, vocab // 2] = logits[1, vocab - 1] = 100.0  # a tie: the first wins
    ids, logprobs = kernels.greedy(logits)
    expected_ids, expected_logprobs = greedy(logits)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-4, atol=1e-4)


def test_greedy_reports_nan_and_ignores_hidden_tokens():
    logits = torch.zeros(2, 40)
    logits[0, 7] = float("nan")
    logits[1, :39] = float("-inf")
    ids, logprobs = kernels.greedy(logits)
    assert logprobs[0].isnan()
    assert ids[1] == 39
    assert logprobs[1] == 0


def plain(weight):
    return weight.float()


def int8(weight):
    rounded, scales = quantize_rows(weight)
    return rounded * scales.unsqueeze(1)


def int4(weight):
    return native_linear_int4(torch.eye(weight.shape[1]), native_linear_int4.pack(weight), None).T


LINEARS = {  # name -> (kernel, what it supports, the weight as it is multiplied)
    "native": (native_linear, kernels.supports, plain),
    "onednn": (onednn_linear, onednn_supports, plain),
    "int8": (native_linear_int8, kernels.supports, int8),
    "int4": (native_linear_int4, kernels.supports, int4),
}


@dtypes
@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (16, 32), (50, 40), (7, 100), (576, 1536), (48, 4200)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 16, 17, 40, 300])
def test_linear(tokens, outputs, inputs, name, dtype):
    linear, supports, stored = LINEARS[name]
    query = KernelQuery(device="cpu", dtype=str(dtype).removeprefix("torch."), head_size=64, block_size=32)
    if reason := supports(query):
        pytest.skip(reason)
    weight, bias = randn(outputs, inputs, dtype=dtype), randn(outputs, dtype=dtype)
    packed = linear.pack(weight)
    wide = randn(tokens, inputs + 25, dtype=dtype)
    share = 1e-2 if dtype is torch.bfloat16 else 1e-4 if name in ("int8", "int4") else 1e-6
    for x in (wide[:, :inputs], wide[:, :inputs].contiguous()):  # rows may be strided, by odd numbers too
        expected = torch.nn.functional.linear(x.float(), stored(weight))
        tolerance = {"rtol": share, "atol": share * expected.abs().max().item()}
        torch.testing.assert_close(linear(x, packed, None).float(), expected, **tolerance)
        torch.testing.assert_close(linear(x, packed, bias).float(), expected + bias.float(), **tolerance)


def test_kernels_called_from_several_threads_at_once():
    packed = native_linear.pack(randn(512, 256, dtype=torch.bfloat16))
    x = randn(64, 256, dtype=torch.bfloat16)
    expected = native_linear(x, packed, None)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: native_linear(x, packed, None), range(200)))
    assert all(torch.equal(one, expected) for one in found)


@dtypes
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (50, 40), (7, 100), (33, 1000)])
def test_int4_weights_are_rounded_as_the_reference_rounds_them(outputs, inputs, weighted, dtype):
    weight = randn(outputs, inputs, dtype=dtype)
    weight[3], weight[5, 7], weight[6, :32] = 0.0, 100.0, 1.5
    importance = torch.rand(inputs, generator=torch.Generator().manual_seed(2)) ** 4 if weighted else None
    packed = native_linear_int4.pack(weight, importance)
    found = native_linear_int4(torch.eye(inputs), packed, None).T
    expected = quantize_groups(weight, importance).dequantize()
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    assert ((found - expected).abs() < 0.01 * scale).logical_or(scale == 0).float().mean() > 0.995  # but for ties
    assert not found[3].any()
    errors = [((w - weight.float()) / scale.clamp(min=1e-9)).square() for w in (found, expected)]
    sums = [float((error if importance is None else error * importance).sum()) for error in errors]
    assert sums[0] == pytest.approx(sums[1], rel=1e-3)


@dtypes
@pytest.mark.parametrize("linear", [native_linear_int8, native_linear_int4])
def test_a_row_of_a_rounded_product_does_not_depend_on_the_others(linear, dtype):
    packed = linear.pack(randn(80, 600, dtype=dtype))
    x = randn(300, 600, dtype=dtype)
    whole = linear(x, packed, None)
    for rows in (1, 2, 15, 17, 40):
        assert torch.equal(linear(x[:rows], packed, None), whole[:rows])


@dtypes
@pytest.mark.parametrize("size", [(40, 70), (512, 256)])
@pytest.mark.parametrize("linear", [native_linear, native_linear_int8])
def test_rows_are_those_of_what_was_packed(linear, size, dtype):
    weight, ids = randn(*size, dtype=dtype), torch.tensor([3, 0, size[0] - 1, 3, 17])
    found = linear.rows(linear.pack(weight), ids, dtype)
    stored = weight if linear is native_linear else int8(weight)
    torch.testing.assert_close(found, stored[ids].to(dtype), rtol=0, atol=0)


@dtypes
@pytest.mark.parametrize("linear", [native_linear_int8, native_linear_int4])
def test_a_rounded_product_of_nan_is_nan(linear, dtype):
    packed = linear.pack(randn(40, 70, dtype=dtype))
    x = randn(3, 70, dtype=dtype)
    x[1, 69], x[2, 0] = float("nan"), float("inf")
    out = linear(x, packed, None)
    assert out[0].isfinite().all()
    assert not out[1:].isfinite().any()


@dtypes
def test_an_int4_product_with_a_weight_of_nan_is_nan(dtype):
    weight = randn(40, 70, dtype=dtype)
    weight[2, 69], weight[33, 0] = float("nan"), float("inf")
    out = native_linear_int4(randn(3, 70, dtype=dtype), native_linear_int4.pack(weight), None)
    lost = torch.tensor([2, 33])
    assert out[:, lost].isnan().all()
    assert out.isfinite().sum() == out.numel() - 3 * 2


def test_int8_products_lose_less_of_their_input_than_bfloat16_does():
    weight = torch.randint(-127, 128, (64, 576), generator=torch.Generator().manual_seed(0)).float()
    weight[:, 0] = 127.0  # so that every scale is 1 and the weight is stored as it is
    x = randn(8, 576, dtype=torch.float32)
    x[:, 5] *= 50  # an outlier, as activations have
    exact = x.double() @ weight.double().T
    error = (native_linear_int8(x, native_linear_int8.pack(weight), None) - exact).norm() / exact.norm()
    rounded = (x.bfloat16().double() @ weight.double().T - exact).norm() / exact.norm()
    assert error < rounded
