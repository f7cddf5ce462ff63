"""The stand-in notices what it is there for."""

import pytest
import torch
from habana_frameworks.torch.hpu import wrap_in_hpu_graph
from habana_standin import compiled
from habana_standin.memory import MixedDevices


@pytest.fixture(autouse=True)
def _fresh_book():
    compiled.reset()
    yield
    compiled.reset()


def test_tensors_know_where_they_are():
    there = torch.ones(2, device="hpu")
    assert there.device.type == (there + 1)[:1].device.type == there.to(torch.bfloat16).device.type == "hpu"
    assert torch.ones(2).device.type == there.cpu().device.type == there.to("cpu").device.type == "cpu"
    assert torch.nn.Linear(2, 2).to("hpu").weight.device.type == "hpu"


def test_tensors_of_host_and_card_do_not_mix():
    with pytest.raises(MixedDevices, match=r"index_select: tensors of shapes \[\(1,\)\] are on the host"):
        torch.ones(2, device="hpu").index_select(0, torch.tensor([1]))
    assert (torch.ones(2, device="hpu") * torch.tensor(2.0)).sum() == 4


def test_a_graph_is_captured_for_each_shape_and_each_value_and_overwrites_what_it_returned():
    class Scale(torch.nn.Module):
        def forward(self, x, by):
            return x * by

    scale = wrap_in_hpu_graph(Scale())
    first = scale(torch.ones(2, device="hpu"), by=3)
    assert scale(torch.full((2,), 2.0, device="hpu"), by=3) is first
    assert first.tolist() == [6, 6]
    scale(torch.ones(2, device="hpu"), by=4)
    assert (len(compiled.captures), sum(compiled.replays.values())) == (2, 1)
    compiled.close()
    with pytest.raises(compiled.LateCompilation, match="Scale was not compiled"):
        scale(torch.ones(3, device="hpu"), by=4)
