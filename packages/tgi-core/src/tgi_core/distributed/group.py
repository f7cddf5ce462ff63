"""The ranks of a model that is divided over several devices, each of which holds a share of every layer
(tensor parallelism, arXiv 1909.08053)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor


class Group(ABC):
    """`size` ranks that run the same steps at the same time; this process is number `rank`."""

    rank: int
    size: int

    @abstractmethod
    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x; may overwrite x."""

    @abstractmethod
    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's x, in order: [size, *x.shape]."""


class Alone(Group):
    """One device holds the whole model."""

    rank, size = 0, 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)


ALONE = Alone()


class TorchGroup(Group):
    """A process group of `torch.distributed`.

    Args:
        backend: "gloo", "nccl" or what else torch knows.
        address: where rank 0 listens: "tcp://127.0.0.1:29500", or "file:///path" on one host.
    """

    def __init__(self, rank: int, size: int, address: str, backend: str) -> None:
        self.rank, self.size = rank, size
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=size)

    def all_reduce(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        out = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
        dist.all_gather(list(out.unbind()), x.contiguous())
        return out

    def leave(self) -> None:
        """End the group; every rank does."""
        dist.destroy_process_group()
