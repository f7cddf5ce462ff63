"""Sums over GPUs that reach each other's memory: each reads what the others have, at once (one-shot all-reduce).

For the few numbers of a decode that takes less time than a library's ring; see `torch.distributed._symmetric_memory`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor

MOST_BYTES = {2: 2 << 20}  #: by ranks; more is left to a library, which sends each number once (2: measured on H100s)
MOST_BYTES_OF_MANY = 256 << 10  #: not measured
MULTIPLE = 16  #: of bytes, which are read at a time
DTYPES = (torch.bfloat16, torch.float32)


class SymmetricSums:
    """Sums over the ranks of a group; all of them make one at the same time.

    Raises:
        RuntimeError: these GPUs do not reach each other's memory.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._bytes = group.group_name, MOST_BYTES.get(group.size(), MOST_BYTES_OF_MANY)
        self._memory: Tensor = symmetric.empty(self._bytes, dtype=torch.uint8, device=device)
        symmetric.rendezvous(self._memory, group)

    def takes(self, x: Tensor) -> bool:
        """Whether x is of a kind and size that this is for."""
        fits = x.nbytes <= self._bytes and x.nbytes % MULTIPLE == 0
        return fits and x.dtype in DTYPES and x.is_contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, in new memory."""
        place = self._memory[: x.nbytes].view(x.dtype).view(x.shape)
        total: Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(place, x, "sum", self._group)
        return total
