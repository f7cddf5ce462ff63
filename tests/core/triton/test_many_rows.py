"""Products of many rows with the gated activation in them, against PyTorch's and an activation behind it."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.triton import activation, many_rows
from tgi_core.triton.linear import linear
from tgi_core.triton.many_rows import gated_product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGE = [(1024, 14336, 4096), (2500, 1536, 576)] if DEVICE == "cuda" else []


@pytest.fixture(autouse=True)
def _any_number_of_rows(monkeypatch):
    monkeypatch.setattr(many_rows, "FEWEST_ROWS", 1)


def draw(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 128, 64), (131, 104, 72), (260, 304, 136), *LARGE])
def test_equals_a_product_and_an_activation(rows, outputs, inputs, kind, dtype):
    """In float16 so closely that gate and up must have been rounded to it; the interpreter cuts bfloat16."""
    x, weight = draw(rows, inputs, dtype=dtype), draw(2 * outputs, inputs, dtype=dtype, seed=1) / inputs**0.5
    expected = getattr(activation, f"{kind}_and_mul")(torch.nn.functional.linear(x, weight)).double()
    found = gated_product(x, weight, kind).double()
    assert (found - expected).norm() / expected.norm() < {torch.float16: 1e-4, torch.bfloat16: 1e-2}[dtype]


def test_rows_may_lie_apart():
    x, weight = draw(20, 3, 64, dtype=torch.float16), draw(80, 64, dtype=torch.float16) / 8
    expected = gated_product(x[:, 1].contiguous(), weight, "silu")
    for apart in (x[:, 1], x.transpose(1, 2)[:, :, 1]):
        torch.testing.assert_close(gated_product(apart, weight, "silu"), expected)


def test_what_cannot_be_copied_in_tiles_is_left_to_others():
    for inputs, dtype in ((36, torch.float16), (64, torch.float32)):
        x, weight = draw(5, inputs, dtype=dtype), draw(80, inputs, dtype=dtype) / 8
        assert gated_product(x, weight, "silu") is None
        expected = activation.silu_and_mul(torch.nn.functional.linear(x, weight))
        torch.testing.assert_close(linear.gated(x, weight, None, activation.silu_and_mul), expected)
    skewed = draw(5 * 64 + 1, dtype=torch.float16)[1:].view(5, 64)
    assert gated_product(skewed, draw(80, 64, dtype=torch.float16), "silu") is None


def test_many_rows_are_multiplied_and_activated_at_once(monkeypatch):
    x, weight = draw(70, 64, dtype=torch.bfloat16), draw(80, 64, dtype=torch.bfloat16) / 8
    monkeypatch.setattr(many_rows, "FEWEST_ROWS", 70)
    expected = gated_product(x, weight, "silu")
    assert gated_product(x[1:], weight, "silu") is None
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: pytest.fail("gate and up were written"))
    assert torch.equal(linear.gated(x, weight, None, activation.silu_and_mul), expected)


def test_few_rows_are_multiplied_so_where_their_tiles_keep_most_of_a_chip_busy(monkeypatch):
    monkeypatch.setattr(many_rows, "FEWEST_ROWS", 1024)
    fast = many_rows._is_fast
    assert fast(80, 14336, 132)
    assert fast(128, 132 * 128, 132)
    assert not fast(129, 14336, 132)  # two tiles of rows
    assert not fast(80, 132 * 128 + 1, 132)  # one multiprocessor has two
    assert not fast(80, 8192, 132)
