"""Choosing experts in Triton against the reference."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels.reference import moe as reference
from tgi_core.triton.routing import choose_experts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("sums_to_one", [True, False])
@pytest.mark.parametrize(("tokens", "experts", "each"), [(1, 1, 1), (3, 8, 2), (5, 60, 4), (2, 128, 8), (4, 7, 7)])
def test_the_most_likely_experts_in_their_order(tokens, experts, each, sums_to_one):
    scores = torch.randn(tokens, 2 * experts, generator=torch.Generator().manual_seed(experts)).to(DEVICE)
    for given in (scores[:, :experts], scores[:, ::2], scores[:, :experts].bfloat16().float() * 20):
        weights, chosen = reference.choose_experts(given, each, sums_to_one)
        found_weights, found = choose_experts(given, each, sums_to_one)
        assert torch.equal(found, chosen)
        torch.testing.assert_close(found_weights, weights)
    assert choose_experts(scores[:0, :experts], each, sums_to_one)[1].shape == (0, each)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_scores_that_are_no_numbers_choose_experts_that_exist():
    scores = torch.zeros(3, 6, device=DEVICE)
    scores[0, 3] = scores[2] = float("nan")
    for sums_to_one in (True, False):
        weights, chosen = choose_experts(scores, 2, sums_to_one)
        assert weights.isnan().any(1).tolist() == [True, False, True]
        assert ((chosen >= 0) & (chosen < 6)).all()
        assert chosen[1].tolist() == [0, 1]
