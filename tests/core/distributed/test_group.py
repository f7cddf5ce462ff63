"""What ranks tell each other, and what becomes of errors."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from tgi_core.distributed.group import ALONE, TorchGroup
from tgi_core.errors import ConfigError, RanksApart


def fail(error):
    raise error


def test_errors_of_one_rank_alone_are_what_they_are():
    with pytest.raises(ValueError, match="odd"), ALONE.together("a step"):
        fail(ValueError("odd"))


def test_an_error_among_ranks_sets_them_apart():
    group = TorchGroup(1, 2, "file:///nowhere")
    with pytest.raises(RanksApart, match="rank 1 of 2 failed in a step: ValueError: odd"), group.together("a step"):
        fail(ValueError("odd"))
    inner = RanksApart("as the model said")
    with pytest.raises(RanksApart, match="as the model said"), group.together("a step"):
        fail(inner)


def test_a_rank_alone_meets_nobody():
    ALONE.join("gloo", torch.device("cpu"))
    assert not dist.is_initialized()
    x = torch.ones(2)
    assert ALONE.from_first(x) is x
    assert ALONE.least(3) == 3


def test_a_process_belongs_to_one_group(tmp_path):
    group = TorchGroup(0, 1, f"file://{tmp_path}/store")
    group.join("gloo", torch.device("cpu"))
    try:
        group.join("gloo", torch.device("cpu"))  # again is harmless
        with pytest.raises(ConfigError, match="close its engine first"):
            TorchGroup(0, 1, f"file://{tmp_path}/other").join("gloo", torch.device("cpu"))
        assert group.least(5) == 5
        assert group.all_gather(torch.ones(3)).tolist() == [[1.0, 1.0, 1.0]]
        assert group.from_first(torch.tensor([7])).tolist() == [7]
    finally:
        group.leave()
    assert not dist.is_initialized()
    group.leave()  # again is harmless


class OnlyShort:
    """Says that it summed."""

    def takes(self, x):
        return len(x) < 3

    def __call__(self, x):
        return x + 100


def test_a_devices_own_sums_serve_what_they_take(tmp_path):
    group = TorchGroup(0, 1, f"file://{tmp_path}/store")
    group.join("gloo", torch.device("cpu"))
    try:
        told = []
        group.sum_with(lambda ranks: told.append(ranks.size()) or OnlyShort())
        assert told == [1]
        assert group.all_reduce(torch.ones(2)).tolist() == [101, 101]
        assert group.all_reduce(torch.ones(3)).tolist() == [1, 1, 1]
        group.sum_with(lambda ranks: None)
        assert group.all_reduce(torch.ones(2)).tolist() == [1, 1]
    finally:
        group.leave()


def test_sums_in_order_stay_the_librarys(tmp_path):
    group = TorchGroup(0, 1, f"file://{tmp_path}/store")
    group.join("gloo", torch.device("cpu"), in_order=True)
    try:
        group.sum_with(lambda ranks: OnlyShort())
        assert group.all_reduce(torch.ones(2)).tolist() == [1, 1]
    finally:
        group.leave()


SUM_IN_ORDER = """
import sys, torch
from tgi_core.distributed.group import TorchGroup
group = TorchGroup(int(sys.argv[1]), 3, sys.argv[2])
group.join("gloo", torch.device("cpu"), in_order=True)
parts = torch.tensor([[1e8] * 9, [1.0] * 9, [-1e8] * 9])  # in this order the 1 is lost, and only in this one
found = [group.all_reduce(parts[group.rank][:size].clone()).tolist() for size in range(1, 10)]
assert found == [[0.0] * size for size in range(1, 10)], found
group.leave()
"""


@pytest.mark.slow
def test_sums_are_taken_in_the_order_of_ranks_where_asked_for(tmp_path):
    command = [sys.executable, "-c", SUM_IN_ORDER]
    ranks = [subprocess.Popen([*command, str(rank), f"file://{tmp_path}/store"]) for rank in range(3)]
    assert [rank.wait(100) for rank in ranks] == [0, 0, 0]


class OnTheHost:
    """A tensor that a group has to bring to its device."""

    def to(self, device):
        assert device.type == "cpu"
        return torch.tensor([1, 2])

    def copy_(self, other):
        self.tokens = other.tolist()
        return self


def test_what_is_elsewhere_is_brought_to_the_device_of_the_group_and_back(tmp_path, monkeypatch):
    """As where tokens are chosen on the host, and ranks meet on their cards."""
    monkeypatch.setattr(dist, "broadcast", lambda x, source: x.copy_(torch.tensor([7, 8])))
    group = TorchGroup(1, 2, f"file://{tmp_path}/store")
    group._device = torch.device("cpu")
    host = OnTheHost()
    assert group.from_first(host) is host
    assert host.tokens == [7, 8]
    here = torch.tensor([1, 2])
    assert group.from_first(here) is here
    assert here.tolist() == [7, 8]
