"""The filters in Triton: against the reference, and by what they promise."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels.reference import sample as reference
from tgi_core.triton import filters
from tgi_core.triton.sample import sample

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HIDDEN = float("-inf")
EXACT = 1e-5  #: of a probability that is a sum of float32
NEUTRAL, TINY = 1.0, 1e-30

#: (vocabulary, spread): a single token, parts of a tile, whole ones, more
sizes = pytest.mark.parametrize(
    ("size", "spread"), [(1, 1.0), (5, 1.0), (16, 3.0), (1000, 0.1), (2048, 2.0), (3001, 8.0), (49152, 2.0)]
)
#: dtype that logits come from: coarse ones leave many equal logits
sources = pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])


def logits_of(rows, size, spread, source=torch.float32, seed=0):
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * spread
    return x.to(source).float().to(DEVICE)


def check_top_k(logits, k):
    k = torch.tensor(k, device=DEVICE)
    expected = reference.top_k(logits.clone(), k)
    assert torch.equal(filters.top_k(logits.clone(), k), expected)


def check_top_p(logits, p):
    """Whatever rounding does: what stays reaches p, would not without its least likely tokens, and beats the rest."""
    found = filters.top_p(logits.clone(), torch.tensor(p, device=DEVICE))
    for row, before, share in zip(found, logits, p, strict=True):
        stays = row > HIDDEN
        assert torch.equal(row[stays], before[stays])
        probabilities = before.double().softmax(-1)
        assert stays[before.argmax()]
        assert probabilities[stays].sum() >= share - EXACT
        least = before[stays].min()
        assert not (before[~stays] >= least).any()
        others = stays & (before > least)
        assert not others.any() or probabilities[others].sum() < share + EXACT


@sources
@sizes
def test_top_k(size, spread, source):
    logits = logits_of(7, size, spread, source)
    logits[5] = 1.0  # all as likely as the k-th
    check_top_k(logits, [1, min(2, size), min(5, size), min(50, size), size, 1, size // 2 + 1])


@sources
@sizes
def test_top_p(size, spread, source):
    logits = logits_of(9, size, spread, source)
    logits[6, 1:] = HIDDEN
    logits[7] = -3.0
    check_top_p(logits, [1e-6, 0.1, 0.5, 0.9, 0.99, 0.0, 0.7, 0.5, TINY])


@sizes
def test_top_p_equals_the_reference(size, spread):
    logits, p = logits_of(4, size, spread), torch.tensor([0.1, 0.5, 0.9, 0.8], device=DEVICE)
    assert torch.equal(filters.top_p(logits.clone(), p), reference.top_p(logits.clone(), p))


def test_neutral_values_keep_everything():
    logits = logits_of(3, 3001, 30.0)
    assert torch.equal(filters.top_p(logits.clone(), torch.tensor([NEUTRAL] * 3, device=DEVICE)), logits)
    assert torch.equal(filters.top_k(logits.clone(), torch.tensor([3001] * 3, device=DEVICE)), logits)


def test_hidden_tokens_stay_hidden():
    logits = logits_of(3, 1000, 2.0)
    logits[:, 4:] = HIDDEN
    check_top_k(logits, [2, 4, 50])
    check_top_p(logits, [0.3, 0.9, 0.9999])


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e12, 1e30])
@pytest.mark.parametrize("middle", [-1e3, 0.0, 1e3])
def test_logits_of_any_scale(scale, middle):
    logits = logits_of(4, 1000, 1.0) * scale + middle
    check_top_k(logits, [1, 3, 500, 999])
    check_top_p(logits, [0.01, 0.5, 0.9, 0.99])


def test_one_logit_far_from_the_others():
    logits = logits_of(4, 1000, 1.0)
    logits[0, 3] = logits[1, 3] = torch.finfo(torch.float32).min
    logits[2, 3], logits[3, 3] = -1e9, 1e9
    check_top_k(logits, [5, 1000, 999, 20])
    check_top_p(logits, [0.9, 0.5, 0.9, 0.9])


def test_neighbouring_floats_are_told_apart():
    ones = torch.ones(64)
    steps = torch.nextafter(ones, ones * 2) - ones
    logits = (1 + steps * torch.arange(64)).repeat(3, 1).to(DEVICE)
    check_top_k(logits, [1, 2, 33])
    check_top_k(-logits, [1, 2, 33])


def test_nan_is_left_to_be_reported_and_hurts_no_other_row():
    logits = logits_of(4, 1000, 2.0)
    logits[0, 7], logits[1], logits[2] = float("nan"), float("nan"), HIDDEN
    k, p = torch.tensor([3] * 4, device=DEVICE), torch.tensor([0.5] * 4, device=DEVICE)
    for found in (filters.top_k(logits.clone(), k), filters.top_p(logits.clone(), p)):
        assert found[:2].isnan().any(1).all()
        assert (found[2] == HIDDEN).all()
    assert torch.equal(filters.top_k(logits[3:].clone(), k[3:]), reference.top_k(logits[3:].clone(), k[3:]))


def test_rows_of_other_memory():
    wide = logits_of(3, 2000, 2.0)
    k = torch.tensor([3, 4, 5], device=DEVICE)
    expected = reference.top_k(wide[:, 100:1101].clone(), k)
    assert torch.equal(filters.top_k(wide.clone()[:, 100:1101], k), expected)
    assert torch.equal(filters.top_k(wide.T.contiguous().T[:, 100:1101], k), expected)
    assert filters.top_p(wide[:0], torch.zeros(0, device=DEVICE)).shape == (0, 2000)


def test_a_row_is_filtered_alone_as_in_any_batch():
    logits = logits_of(6, 3001, 3.0)
    p = torch.tensor([0.9] * 6, device=DEVICE)
    alone = torch.cat([filters.top_p(row.clone(), p[:1]) for row in logits.split(1)])
    assert torch.equal(filters.top_p(logits.clone(), p), alone)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="PyTorch sees no GPU")
def test_filters_and_sampling_can_be_recorded():
    source, p, k = logits_of(4, 3001, 3.0), torch.tensor([0.9] * 4).to(DEVICE), torch.tensor([40] * 4).to(DEVICE)
    at = torch.tensor([0.1, 0.5, 0.9, -1.0], dtype=torch.float64, device=DEVICE)

    def run():
        return sample(filters.top_p(filters.top_k(source.clone(), k), p), at)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for seed in range(3):
        source.copy_(logits_of(4, 3001, 3.0, seed=seed))
        graph.replay()
        assert all(map(torch.equal, found, run()))
