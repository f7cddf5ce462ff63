"""Facts about a chip."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

AMPERE = 8  #: the first compute capability whose matrix units Triton uses; AMD's count higher
HOPPER = 9  #: what NVIDIA calls compute capability 9.0; on AMD's, with 64 lanes, it means others
ROW_LANES = 512  #: of a program that reads a row of logits, or draws from a part of one


class Chip:
    """What tiles and splits depend on."""

    def __init__(self, device: torch.device) -> None:
        if device.type == "cpu":  # Triton's interpreter
            self.multiprocessors, self.shared_bytes, self.interprets = 4, 1 << 18, True
            self.lanes, self.has_matrix_units, self.is_hopper, self.publishes = 32, True, True, True
            return
        properties: Any = torch.cuda.get_device_properties(device)
        self.multiprocessors, self.interprets = int(properties.multi_processor_count), False
        self.shared_bytes = int(getattr(properties, "shared_memory_per_block_optin", 1 << 16))
        self.lanes = int(getattr(properties, "warp_size", 32))  #: of a warp
        major = int(getattr(properties, "major", AMPERE))
        self.has_matrix_units = major >= AMPERE  #: that Triton uses
        #: what all threads of a program stored is seen by whoever sees what one of them adds behind a barrier (PTX ISA,
        #: memory consistency model); AMD's model has not been looked at
        self.publishes = self.lanes == 32
        #: whose copies of tiles are used, and on which products of few rows were found to be faster than PyTorch's
        self.is_hopper = major == HOPPER and self.lanes == 32


chip_of = cache(Chip)  #: of a device


@cache
def row_warps(device: torch.device) -> int:
    """Warps of ROW_LANES: more lanes than that, where warps have 64, would have too few registers each."""
    return ROW_LANES // Chip(device).lanes
