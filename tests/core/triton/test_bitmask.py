"""Hiding tokens by the bits of a grammar, in Triton against the reference."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels.reference import sample as reference
from tgi_core.triton.bitmask import apply_bitmask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2,)])
@pytest.mark.parametrize("function", [apply_bitmask, reference.apply_bitmask])
def test_every_token_of_every_row_needs_a_bit(shape, function):
    for allowed in (torch.zeros(shape, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"2 rows and 33 tokens need a mask \[2, 2\] of int32, not \["):
            function(torch.zeros(2, 33, device=DEVICE), allowed.to(DEVICE))


@pytest.mark.parametrize("size", [1, 32, 33, 4096, 9001])
def test_tokens_whose_bit_is_not_set_are_hidden(size):
    chance = torch.Generator().manual_seed(size)
    logits = torch.randn(3, 2 * size, generator=chance).to(DEVICE)
    logits[0, 0] = float("nan")
    allowed = torch.randint(-(2**31), 2**31, (3, -(-size // 32) + 1), generator=chance).int().to(DEVICE)
    allowed[1], allowed[2] = -1, 0
    expected = reference.apply_bitmask(logits[:, :size].clone(), allowed)
    assert expected[1].isfinite().all()
    assert expected[2].isinf().all()
    rest = logits[:, size:].clone()
    torch.testing.assert_close(apply_bitmask(logits[:, :size], allowed), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(logits[:, size:], rest)
    assert apply_bitmask(logits[:0, :size], allowed[:0]).shape == (0, size)
