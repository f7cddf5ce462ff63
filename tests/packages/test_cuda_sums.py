"""Sums over two GPUs that write into each other's memory, beside NCCL's, and recorded."""

import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs that PyTorch sees"),
]

RANK = """
import sys, torch, torch.distributed as dist
from tgi_core.distributed.group import TorchGroup
from tgi_cuda.sums import SymmetricSums
rank = int(sys.argv[1])
device = torch.device("cuda", rank)
torch.cuda.set_device(device)
group = TorchGroup(rank, 2, sys.argv[2])
group.join("nccl", device)
made = []
group.sum_with(lambda ranks: made.append(SymmetricSums(ranks, device)) or made[0])
generator = torch.Generator(device).manual_seed(rank)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for shape in ((1, 8), (1, 4096), (7, 576), (256, 4096), (1, 16)):
        x = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        assert made[0].takes(x)
        expected = x.clone()
        dist.all_reduce(expected)
        assert torch.equal(group.all_reduce(x.clone()), expected)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            y = group.all_reduce(group.all_reduce(x))
        for _ in range(3):
            graph.replay()
            assert torch.equal(group.all_reduce(x), expected)
        assert torch.equal(y, 2 * expected)
assert not made[0].takes(torch.zeros(1 << 21, device=device))
assert not made[0].takes(torch.zeros(3, device=device, dtype=torch.bfloat16))
assert not made[0].takes(torch.zeros(8, 8, device=device).T)
assert not made[0].takes(torch.zeros(8, device=device, dtype=torch.int64))
torch.cuda.synchronize()
del graph
group.leave()
"""


def test_sums_are_those_of_nccl(tmp_path):
    address = f"file://{tmp_path}/store"
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), address]) for rank in range(2)]
    try:
        assert [rank.wait(100) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
