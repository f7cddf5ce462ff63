"""The running softmax that attention kernels share."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from tgi_core.triton.scores import HIDDEN, LOWEST, accumulate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def take(scores, values, totals, outputs, unit, M: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr):
    """Two blocks of N keys; a score of 0 is that of a key which is not seen."""
    m, n = tl.arange(0, M), tl.arange(0, N)
    best = tl.full([M], LOWEST, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, N], tl.float32)
    for block in range(2):
        keys = block * N + n
        s = tl.load(scores + m[:, None] * 2 * N + keys[None, :])
        v = tl.load(values + keys[:, None] * N + n[None, :])
        best, total, out = accumulate(tl.where(s != 0, s, HIDDEN), unit, v, best, total, out, UPCAST)
        tl.store(totals + block * M + m, total)
    tl.store(outputs + m[:, None] * N + n[None, :], out / total[:, None])


@pytest.mark.parametrize("unit", [0.25, 0.36, 16**-0.5 * 1.4427, 1 / 3, 1.4427])
def test_a_block_without_a_key_that_is_seen_adds_nothing(unit):
    """However products and sums are contracted."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(16, 32, generator=generator)
    scores[:8, :16] = 0
    scores[8:, 16:] = 0
    values = torch.randn(32, 16, generator=generator)
    scores, values = scores.to(DEVICE), values.to(DEVICE)
    totals, found = torch.empty(2, 16, device=DEVICE), torch.empty(16, 16, device=DEVICE)
    take[(1,)](scores, values, totals, found, unit, 16, 16, DEVICE == "cpu")
    assert totals[0, :8].tolist() == [0.0] * 8
    assert torch.equal(totals[1, 8:], totals[0, 8:])
    weights = (scores * unit * 0.6931471805599453).masked_fill(scores == 0, float("-inf")).softmax(-1)
    torch.testing.assert_close(found, weights @ values, rtol=1e-5, atol=1e-5)
