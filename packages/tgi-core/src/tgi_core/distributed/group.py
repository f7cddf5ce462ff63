"""The ranks of a model that is divided over several devices, each of which holds a share of every layer
(tensor parallelism, arXiv 1909.08053)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from tgi_core.errors import ConfigError, RanksApart

TIMEOUT = timedelta(minutes=10)  #: of one operation; ranks that die are noticed sooner by who started them


class Sums(Protocol):
    """Sums over ranks, where they are faster than those of the collectives' library."""

    def takes(self, x: Tensor) -> bool:
        """Whether x is of a kind and size that they are for; the same on all ranks."""

    def __call__(self, x: Tensor) -> Tensor:
        """The sum of every rank's x; may be recorded."""


class Norm(NamedTuple):
    """Of N features, with a residual before it."""

    weight: Tensor  #: [N]
    bias: Tensor | None  #: [N]
    eps: float
    is_rms: bool  #: arXiv 1910.07467, or a layer norm (1607.06450)


@runtime_checkable
class NormingSums(Sums, Protocol):
    """Sums that a norm may follow at once."""

    def takes_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> bool:
        """Whether they are of kinds and sizes that `sum_and_norm` is for; the same on all ranks."""

    def sum_and_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """(norm(sum + residual), sum + residual), of every rank's x [T, N]; may overwrite residual, may be recorded."""


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

    @abstractmethod
    def from_first(self, x: Tensor) -> Tensor:
        """Rank 0's x; overwrites x elsewhere."""

    @abstractmethod
    def least(self, value: int) -> int:
        """The smallest of the ranks' values."""

    def sum_and_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor] | None:
        """See `NormingSums`; None, and nothing done, where they are to be one after the other."""
        return None

    def join(  # noqa: B027 - a rank alone has nobody to meet
        self, collectives: str, device: torch.device, *, in_order: bool = False
    ) -> None:
        """Meet the other ranks; before anything is exchanged.

        Args:
            collectives: see `DeviceBackend.collectives`.
            device: of this rank.
            in_order: sum in the order of ranks, whatever the size of what is summed; libraries choose orders by size.
        """

    def sum_with(  # noqa: B027 - as above
        self, sums: Callable[[dist.ProcessGroup], Sums | None], *, norms: bool = True
    ) -> None:
        """Sum with a device's own sums, where all ranks can; after `join`.

        Args:
            sums: see `DeviceBackend.sums`.
            norms: they may norm what they sum, too.
        """

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """What fails in here has failed on this rank alone, for all that it knows.

        Raises:
            RanksApart: in place of any other error, where there are other ranks, which may wait for this one for ever.
        """
        try:
            yield
        except RanksApart:
            raise
        except Exception as error:
            if self.size == 1:
                raise
            raise RanksApart(
                f"rank {self.rank} of {self.size} failed in {what}: {type(error).__name__}: {error}; "
                "ranks cannot go on apart"
            ) from error


class Alone(Group):
    """One device holds the whole model."""

    rank, size = 0, 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def from_first(self, x: Tensor) -> Tensor:
        return x

    def least(self, value: int) -> int:
        return value


ALONE = Alone()


class TorchGroup(Group):
    """The process group of `torch.distributed`, of which a process has one.

    Args:
        address: where ranks meet: "file:///path" on one host, "tcp://10.0.0.1:29500".
    """

    def __init__(self, rank: int, size: int, address: str) -> None:
        self.rank, self.size, self.address = rank, size, address
        self._device: torch.device | None = None
        self._sums_in_order = False
        self._sums: Sums | None = None
        self._norming: NormingSums | None = None

    def join(self, collectives: str, device: torch.device, *, in_order: bool = False) -> None:
        """Meet the other ranks, and connect to them, which cannot be done while a step is recorded.

        Raises:
            ConfigError: this process belongs to other ranks already.
        """
        if self._device is not None:
            return
        if dist.is_initialized():
            raise ConfigError("another model is divided over this process and others; close its engine first")
        dist.init_process_group(
            collectives,
            init_method=self.address,
            rank=self.rank,
            world_size=self.size,
            timeout=TIMEOUT,
            device_id=None if device.index is None else device,  # one of several of its kind
        )
        self._device, self._sums_in_order = device, in_order
        self.least(0)
        self.from_first(torch.zeros(1, dtype=torch.int64, device=device))
        self.all_gather(torch.zeros(1, device=device))

    def sum_with(self, sums: Callable[[dist.ProcessGroup], Sums | None], *, norms: bool = True) -> None:
        if dist.group.WORLD is None or self._sums_in_order:
            return
        found = sums(dist.group.WORLD)
        self._sums = found if self.least(found is not None) else None
        self._norming = self._sums if norms and isinstance(self._sums, NormingSums) else None

    def all_reduce(self, x: Tensor) -> Tensor:
        if self._sums_in_order and self.size > 2:  # two numbers have one sum
            first, *others = self.all_gather(x)
            return sum(others, first)
        if self._sums is not None and self._sums.takes(x):
            return self._sums(x)
        dist.all_reduce(x)
        return x

    def sum_and_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor] | None:
        if self._norming is None or not self._norming.takes_norm(x, residual, norm):
            return None
        return self._norming.sum_and_norm(x, residual, norm)

    def all_gather(self, x: Tensor) -> Tensor:
        out = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
        dist.all_gather(list(out.unbind()), x.contiguous())
        return out

    def from_first(self, x: Tensor) -> Tensor:
        there = x.to(self._device)  # libraries of collectives know the memory of their own device only
        dist.broadcast(there, 0)
        return x if there is x else x.copy_(there)

    def least(self, value: int) -> int:
        values = torch.tensor([value], dtype=torch.int64, device=self._device)
        dist.all_reduce(values, dist.ReduceOp.MIN)
        return int(values.item())

    def leave(self, *, in_order: bool = True) -> None:
        """End the group; nothing recorded may be left that it takes part in.

        Args:
            in_order: every rank does the same now; otherwise others may be gone.
        """
        if self._device is None:
            return
        self._device = self._sums = self._norming = None
        if not in_order and dist.group.WORLD is not None:
            with suppress(RuntimeError):  # not every library of collectives can
                dist.group.WORLD.abort()
        dist.destroy_process_group()
