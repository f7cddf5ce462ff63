"""Sums over ranks that are left to who reads them: a norm takes one and norms it at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tgi_core.distributed.group import Group


@dataclass(frozen=True)
class Unsummed:
    """What this rank adds to a sum over all ranks; all of them take the same sums in the same order."""

    share: Tensor  #: [T, N]; to be used once, as summing may overwrite it
    group: Group

    def __add__(self, other: Unsummed) -> Unsummed:
        return Unsummed(self.share + other.share, self.group)

    def __mul__(self, factor: Tensor | float) -> Unsummed:
        """By a factor that all ranks have."""
        return Unsummed(self.share * factor, self.group)


def summed(x: Tensor | Unsummed) -> Tensor:
    """The sum over all ranks, if x is a share."""
    return x.group.all_reduce(x.share) if isinstance(x, Unsummed) else x
