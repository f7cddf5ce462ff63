"""Choosing tokens in C++ against the reference."""

import pytest
import torch

from tgi_core.cpu import kernels, native
from tgi_core.kernels.ops import Penalties, TokenTables
from tgi_core.kernels.reference import sample as reference

HIDDEN = float("-inf")
shapes = pytest.mark.parametrize(("vocab", "spread"), [(5, 1.0), (16, 3.0), (1000, 0.1), (3001, 8.0), (49152, 2.0)])


@pytest.fixture(autouse=True)
def compiled(variant):
    if native.unavailable():
        pytest.skip(native.unavailable())


def logits_of(rows, vocab, spread, seed=0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


@shapes
def test_sample(vocab, spread):
    logits = logits_of(40, vocab, spread)
    logits[:, : vocab // 2] = HIDDEN  # filtered
    at = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    at[::5] = -1.0
    at[1], at[2] = 0.0, 1 - 2**-53
    found, expected = kernels.sample(logits, at), reference.sample(logits, at)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-4)


def test_samples_follow_the_distribution():
    draws = 20_000
    logits = torch.tensor([0.5, 0.0, 0.3, 0.2]).log().repeat(draws, 1)
    at = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    ids, logprobs, totals = kernels.sample(logits, at)
    assert torch.bincount(ids).tolist() == [10_000, 0, 6_000, 4_000]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.0, 0.3, 0.2])[ids])
    torch.testing.assert_close(totals, torch.zeros(draws), rtol=0, atol=1e-5)


def test_nan_is_reported():
    logits = torch.zeros(2, 40)
    logits[0, 7] = float("nan")
    logprobs = kernels.sample(logits, torch.tensor([0.5, 0.5], dtype=torch.float64))[1]
    assert logprobs.isnan().tolist() == [True, False]


@shapes
def test_top_k(vocab, spread):
    logits = logits_of(6, vocab, spread)
    logits[5] = 1.0  # all as likely as the k-th
    k = torch.tensor([1, 2, 5, min(50, vocab), vocab, 3])
    assert torch.equal(kernels.top_k(logits.clone(), k), reference.top_k(logits.clone(), k))


@shapes
def test_top_p(vocab, spread):
    logits = logits_of(7, vocab, spread)
    p = torch.tensor([1e-6, 0.1, 0.5, 0.9, 0.99, 0.0, 0.7])
    logits[6, 1:] = HIDDEN
    assert torch.equal(kernels.top_p(logits.clone(), p), reference.top_p(logits.clone(), p))


def test_filters_of_nan_leave_nan_to_be_reported():
    logits = torch.full((1, 40), float("nan"))
    assert kernels.top_k(logits.clone(), torch.tensor([3])).isnan().any()
    assert kernels.top_p(logits.clone(), torch.tensor([0.5])).isnan().any()


@shapes
def test_penalize(vocab, spread):
    logits, slots = logits_of(4, vocab, spread), torch.tensor([5, 0, 2, 3])
    chance = torch.Generator().manual_seed(2)
    tables = TokenTables(*((torch.randint(-20, 4, (6, vocab), generator=chance).clamp(min=0).int()) for _ in range(2)))
    penalties = Penalties(
        torch.tensor([1.0, 1.3, 0.5, 2.0]), torch.tensor([0.0, 0.5, -1.0, 0.0]), torch.tensor([1.5, 0.0, -0.5, 0.0])
    )
    expected = reference.penalize(logits.clone(), tables, slots, penalties)
    torch.testing.assert_close(kernels.penalize(logits, tables, slots, penalties), expected)
