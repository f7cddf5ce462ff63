"""A process group of `torch.distributed` that takes what is on the card, and nothing else."""

import os

import torch.distributed as dist

from habana_standin.memory import MixedDevices, is_on_hpu


class HcclGroup(dist.ProcessGroup):
    """Ranks on one host."""

    def __init__(self, store, rank, size, timeout):
        super().__init__(rank, size)
        if os.environ.get("PT_HPU_ENABLE_LAZY_COLLECTIVES") != "true":
            raise RuntimeError("sums over cards are no part of a graph; set PT_HPU_ENABLE_LAZY_COLLECTIVES")
        if os.environ.get("LOCAL_RANK") != str(rank):
            raise RuntimeError(f"rank {rank} has taken card {os.environ.get('LOCAL_RANK')}")
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self):
        return "hccl"

    def allreduce(self, tensors, options=None):
        check("all_reduce", tensors)
        return self._gloo.allreduce(tensors, options)

    def broadcast(self, tensors, options=None):
        check("broadcast", tensors)
        return self._gloo.broadcast(tensors, options)

    def allgather(self, outputs, inputs, options=None):
        check("all_gather", [*inputs, *(output for part in outputs for output in part)])
        return self._gloo.allgather(outputs, inputs, options)


def check(name, tensors):
    if not all(map(is_on_hpu, tensors)):
        raise MixedDevices(f"hccl's {name}: a tensor is not on the card")
