"""Sampling in Triton: against the reference's cumulative distribution, and by what it promises."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.device.side_by_side import pieces_of
from tgi_core.kernels.reference import sample as reference
from tgi_core.triton.launch import ALIGNMENT
from tgi_core.triton.sample import sample

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HIDDEN = float("-inf")
EXACT = 1e-5  #: of a probability that is a sum of float32

sizes = pytest.mark.parametrize(
    ("size", "spread"), [(1, 1.0), (5, 1.0), (16, 3.0), (1000, 0.1), (4096, 2.0), (20001, 8.0), (49152, 2.0)]
)


def logits_of(rows, size, spread, seed=0):
    return (torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * spread).to(DEVICE)


def uniforms(*values):
    return torch.tensor(values, dtype=torch.float64, device=DEVICE)


def check(logits, at):
    """The distribution passes `at` in the token that was drawn, whatever rounding does."""
    ids, logprobs, totals = sample(logits, at)
    expected_ids, _, expected_totals = reference.sample(logits, at)
    torch.testing.assert_close(totals, expected_totals, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0], rtol=1e-4, atol=1e-4)
    assert logprobs.isfinite().all()
    cumulative = logits.double().softmax(-1).cumsum(-1)
    after = cumulative.gather(1, ids[:, None])[:, 0]
    before = torch.where(ids > 0, cumulative.gather(1, (ids[:, None] - 1).clamp(min=0))[:, 0], 0.0)
    drawn = at >= 0
    assert (before <= at + EXACT)[drawn].all()
    assert (after >= at - EXACT)[drawn].all()
    assert torch.equal(ids[~drawn], expected_ids[~drawn])
    return ids


@sizes
def test_sample(size, spread):
    logits = logits_of(12, size, spread)
    logits[:, : size // 2] = HIDDEN  # filtered
    at = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    at[::5] = -1.0
    at[1], at[2] = 0.0, 1 - 2**-53
    check(logits, at)


def test_samples_follow_the_distribution():
    draws = 200
    logits = torch.tensor([0.5, 0.0, 0.3, 0.2], device=DEVICE).log().repeat(draws, 1)
    at = (torch.arange(draws, dtype=torch.float64, device=DEVICE) + 0.5) / draws
    ids, logprobs, totals = sample(logits, at)
    assert torch.bincount(ids).tolist() == [100, 0, 60, 40]
    torch.testing.assert_close(logprobs.exp(), logits.exp().gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(totals, torch.zeros(draws, device=DEVICE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", [0, 7, 4095, 4096, 20000])
def test_a_single_token_is_always_drawn(place):
    logits = torch.full((4, 20001), HIDDEN, device=DEVICE)
    logits[:, place] = -50.0
    ids, logprobs, _ = sample(logits, uniforms(-1.0, 0.0, 0.3, 1 - 2**-53))
    assert ids.tolist() == [place] * 4
    torch.testing.assert_close(logprobs, torch.zeros(4, device=DEVICE), rtol=0, atol=1e-5)


def test_the_first_of_the_most_likely_is_chosen():
    logits = logits_of(2, 20001, 1.0)
    logits[:, [9000, 9001, 19000]] = 30.0
    assert sample(logits, uniforms(-1.0, -1.0))[0].tolist() == [9000, 9000]


def test_hidden_tokens_are_never_drawn():
    logits = torch.zeros(64, 10000, device=DEVICE)
    logits[:, 1::3] = HIDDEN
    logits[:, 9000:] = HIDDEN
    ids = check(logits, torch.linspace(0, 1 - 2**-53, 64, dtype=torch.float64, device=DEVICE))
    assert ((ids % 3 != 1) & (ids < 9000)).all()


@pytest.mark.parametrize("middle", [-1e4, 1e4])
def test_only_differences_count(middle):
    logits = (logits_of(3, 1000, 2.0) * 64).round() / 64  # so that nothing is lost to the sum
    at = uniforms(0.2, 0.5, 0.9)
    assert torch.equal(sample(logits, at)[0], sample(logits + middle, at)[0])


def test_nan_is_reported_for_its_row_only():
    logits = logits_of(5, 20001, 1.0)
    logits[0, 7], logits[1], logits[2], logits[3, 19000] = float("nan"), float("nan"), HIDDEN, float("nan")
    ids, logprobs, _ = sample(logits, uniforms(0.5, 0.5, 0.5, -1.0, 0.5))
    assert logprobs.isnan().tolist() == [True, True, True, True, False]
    assert ((ids >= 0) & (ids < 20001)).all()


def test_rows_of_other_memory():
    wide, at = logits_of(3, 2000, 2.0), uniforms(0.1, 0.5, 0.9)
    expected = sample(wide[:, 100:1101].contiguous(), at)
    for found in (sample(wide[:, 100:1101], at), sample(wide.T.contiguous().T[:, 100:1101], at)):
        assert all(map(torch.equal, found, expected))
    assert sample(wide[:0], uniforms())[0].shape == (0,)


@pytest.mark.parametrize("rows", range(1, 6))
def test_results_begin_where_kernels_are_not_compiled_anew(rows):
    found = sample(torch.randn(rows, 40, device=DEVICE), torch.full((rows,), -1.0, dtype=torch.float64, device=DEVICE))
    assert all((x.data_ptr() - found[0].data_ptr()) % ALIGNMENT == 0 for x in found)
    assert len(pieces_of(found)) == 1
