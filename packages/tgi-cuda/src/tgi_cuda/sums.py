"""Sums over GPUs that reach each other's memory, with `tgi_core.triton.sums`.

See `torch.distributed._symmetric_memory`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor

from tgi_core.triton.sums import MULTIPLE, WORD, programs_of, sum_of_ranks

MOST_BYTES = {2: 4 << 20}  #: by ranks; more is left to a library, which sends each number once (2: measured on H200s)
MOST_BYTES_OF_MANY = 256 << 10  #: not measured
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class SymmetricSums:
    """Sums over the ranks of a group; all of them make the same ones, one after the other.

    Raises:
        RuntimeError: these GPUs do not reach each other's memory.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._rank, self._capacity = group.rank(), MOST_BYTES.get(group.size(), MOST_BYTES_OF_MANY) // WORD
        self._inbox: Tensor = symmetric.empty(2, group.size(), self._capacity, dtype=torch.int64, device=device)
        self._inbox.zero_()
        torch.cuda.synchronize(device)  # before others may write to it, which they may when they have met this rank
        addresses = symmetric.rendezvous(self._inbox, group).buffer_ptrs
        self._inboxes = torch.tensor(addresses, dtype=torch.int64, device=device)
        self._numbers = torch.zeros(programs_of(self._capacity), dtype=torch.int32, device=device)

    def takes(self, x: Tensor) -> bool:
        """Whether x is of a kind and size that this is for."""
        fits = x.nbytes <= self._capacity * WORD and x.nbytes % MULTIPLE == 0
        return fits and x.dtype in DTYPES and x.is_contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, in new memory."""
        x = x.clone() if x.data_ptr() % WORD else x
        return sum_of_ranks(x, self._inboxes, self._numbers, self._rank, self._capacity)
