"""Sums over GPUs that reach each other's memory, with `tgi_core.triton.sums`.

See `torch.distributed._symmetric_memory`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor

from tgi_core.distributed.group import Norm
from tgi_core.triton.sums import MULTIPLE, WORD, programs_of, sum_and_norm, sum_of_ranks

MOST_BYTES = {2: 4 << 20}  #: by ranks; more is left to a library, which sends each number once (2: measured on H200s)
MOST_BYTES_OF_MANY = 256 << 10  #: not measured
MOST_ROWS = 1024  #: whose sums are normed at once
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DTYPES_OF_NORMS = (torch.bfloat16, torch.float16)


class SymmetricSums:
    """Sums over the ranks of a group; all of them make the same ones, one after the other.

    Raises:
        RuntimeError: these GPUs do not reach each other's memory.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._rank, self._capacity = group.rank(), MOST_BYTES.get(group.size(), MOST_BYTES_OF_MANY) // WORD
        shape = (2, group.size(), self._capacity)
        self._inboxes = [symmetric.empty(*shape, dtype=torch.int64, device=device).zero_() for _ in range(2)]
        torch.cuda.synchronize(device)  # before others may write to it, which they may when they have met this rank
        self._addresses, self._addresses_for_norms = (
            torch.tensor(symmetric.rendezvous(inbox, group).buffer_ptrs, dtype=torch.int64, device=device)
            for inbox in self._inboxes
        )
        self._numbers, self._numbers_of_norms = (
            torch.zeros(count, dtype=torch.int32, device=device) for count in (programs_of(self._capacity), MOST_ROWS)
        )
        self._row_bytes = 0  #: of sums that are normed, as of the first one

    def takes(self, x: Tensor) -> bool:
        """Whether x is of a kind and size that this is for."""
        fits = x.nbytes <= self._capacity * WORD and x.nbytes % MULTIPLE == 0
        return fits and x.dtype in DTYPES and x.is_contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, in new memory."""
        x = x.clone() if x.data_ptr() % WORD else x
        return sum_of_ranks(x, self._addresses, self._numbers, self._rank, self._capacity)

    def takes_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> bool:
        """The same of `sum_and_norm`, whose rows [T, N] are as long as the first ones were."""
        row_bytes = x.shape[1] * x.itemsize
        fits = len(x) <= MOST_ROWS and row_bytes % MULTIPLE == 0 and self._row_bytes in (0, row_bytes)
        others = (residual, norm.weight, *(() if norm.bias is None else (norm.bias,)))
        alike = all(other.dtype is x.dtype and other.is_contiguous() for other in others)
        return fits and alike and x.dtype in DTYPES_OF_NORMS and self.takes(x)

    def sum_and_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """See `NormingSums`."""
        self._row_bytes = x.shape[1] * x.itemsize
        x = x.clone() if x.data_ptr() % WORD else x
        numbers, rank, capacity = self._numbers_of_norms, self._rank, self._capacity
        return sum_and_norm(x, residual, norm, self._addresses_for_norms, numbers, rank, capacity)
