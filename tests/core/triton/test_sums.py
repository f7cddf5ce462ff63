"""Sums over ranks in Triton: each is played in turn, when the others' numbers were put where it looks for them."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.distributed.group import Norm
from tgi_core.kernels.reference import norm as reference
from tgi_core.triton.sums import BLOCK, LAST, WORD, programs_of, sum_and_norm, sum_of_ranks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAPACITY = 3 * BLOCK
SIZES = [4, 1500, CAPACITY, 1500, 8]  # words of sums that follow each other
TOLERANCES = {torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 1e-2}  # the interpreter rounds the last down


class Ranks:
    """Memory of some ranks, all on one device."""

    def __init__(self, count, sums=0, block=BLOCK):
        self.count, self.block = count, block  # words with a number
        self.inboxes = [torch.zeros(2, count, CAPACITY, dtype=torch.int64, device=DEVICE) for _ in range(count)]
        programs = max(programs_of(CAPACITY), CAPACITY // block)
        self.numbers = [torch.full((programs,), sums, dtype=torch.int32, device=DEVICE) for _ in range(count)]
        self.addresses = torch.tensor([inbox.data_ptr() for inbox in self.inboxes], device=DEVICE)

    def packets(self, x, rank):
        """What others are to find of x: which of both halves, and the packets there."""
        words = x.flatten().view(torch.int32).long() & 0xFFFFFFFF
        number = self.numbers[rank].long().repeat_interleave(self.block)[: len(words)] % LAST + 1
        return number % 2, number << 32 | words

    def sum(self, xs, take=sum_of_ranks):
        """What every rank makes of its numbers; all have sent theirs to the others."""
        wanted = [[self.packets(x, rank) for x in xs] for rank in range(self.count)]
        found = []
        for rank, x in enumerate(xs):
            for other in set(range(self.count)) - {rank}:
                half, packets = wanted[rank][other]
                self.inboxes[rank][half, other, torch.arange(len(packets))] = packets
            for other in set(range(self.count)) - {rank}:
                half, packets = wanted[other][rank]
                self.inboxes[other][half, rank, torch.arange(len(packets))] = 0  # to be sent by it
            found.append(take(x, self.addresses, self.numbers[rank], rank, CAPACITY))
            for other in set(range(self.count)) - {rank}:
                half, packets = wanted[other][rank]
                assert torch.equal(self.inboxes[other][half, rank, torch.arange(len(packets))], packets)
        return found


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("count", [2, 3])
def test_every_rank_has_the_sum_and_sends_its_numbers_to_the_others(count, dtype):
    ranks, generator = Ranks(count), torch.Generator().manual_seed(count)
    for words in SIZES:
        shape = 2, words * WORD // dtype.itemsize // 2
        xs = [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for _ in range(count)]
        expected = torch.stack(xs).float().sum(0).to(dtype)
        for found in ranks.sum(xs):
            torch.testing.assert_close(found, expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype] / 10)


def test_numbers_of_sums_begin_again():
    ranks = Ranks(2, sums=LAST - 2)
    for value in range(1, 5):
        xs = [torch.full((4,), float(value), device=DEVICE) for _ in range(2)]
        assert all(torch.equal(found, 2 * xs[0]) for found in ranks.sum(xs))
    assert ranks.numbers[0][0] == ranks.numbers[1][0] == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("is_rms", "biased"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("count", [2, 3])
def test_sums_are_normed_as_after_them(count, is_rms, biased, dtype):
    features, tolerance = 200, 1e-2 if dtype is torch.float16 else 4e-2
    ranks, generator = Ranks(count, block=features * dtype.itemsize // WORD), torch.Generator().manual_seed(count)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)

    weight, bias = draw(features), draw(features) if biased else None
    for rows in (1, 5, 3):
        xs, residual = [draw(rows, features) for _ in range(count)], draw(rows, features)
        total = torch.stack(xs).float().sum(0).to(dtype)
        more = () if is_rms else (bias,)
        expected = (reference.add_rms_norm if is_rms else reference.add_layer_norm)(
            total, residual.clone(), weight, *more, 1e-5
        )

        def take(x, *memory, residual=residual):
            return sum_and_norm(x, residual.clone(), Norm(weight, bias, 1e-5, is_rms), *memory)

        for found in ranks.sum(xs, take):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
