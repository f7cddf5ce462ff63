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
from tgi_core.distributed.group import Norm, TorchGroup
from tgi_core.kernels.reference.norm import add_layer_norm, add_rms_norm
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
weight = torch.randn(4096, device=device, generator=torch.Generator(device).manual_seed(9))
for dtype in (torch.bfloat16, torch.float16):
    w = weight.to(dtype)
    for rows, norm in [(1, Norm(w, None, 1e-5, True)), (40, Norm(w, w, 1e-5, False)), (256, Norm(w, None, 1e-5, True))]:
        x = torch.randn((rows, 4096), dtype=dtype, device=device, generator=generator)
        residual = torch.randn((rows, 4096), device=device, generator=torch.Generator(device).manual_seed(1)).to(dtype)
        total = x.clone()
        dist.all_reduce(total)
        if norm.is_rms:
            expected = add_rms_norm(total, residual.clone(), w, 1e-5)
        else:
            expected = add_layer_norm(total, residual.clone(), w, w, 1e-5)
        assert made[0].takes_norm(x, residual, norm)
        held = residual.clone()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        found = [group.sum_and_norm(x, residual.clone(), norm)]
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            held.copy_(residual)
            first = group.sum_and_norm(x, held, norm)
            again = group.all_reduce(x)
            found.append(group.sum_and_norm(x, held.copy_(residual), norm))
        for _ in range(3):
            graph.replay()
            assert torch.equal(again, total)
        for one in found:
            assert torch.equal(one[1], expected[1])
            torch.testing.assert_close(one[0], expected[0], rtol=1e-2, atol=1e-2)
assert not made[0].takes_norm(x.float(), residual, norm)
assert not made[0].takes_norm(x, residual.float(), norm)
assert not made[0].takes_norm(x[:, :2048].contiguous(), residual, norm)
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
