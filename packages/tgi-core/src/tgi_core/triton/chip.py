"""Facts about a chip."""

from __future__ import annotations

from typing import Any

import torch


class Chip:
    """What tiles and splits depend on."""

    def __init__(self, device: torch.device) -> None:
        if device.type == "cpu":  # Triton's interpreter
            self.multiprocessors, self.shared_bytes, self.interprets = 4, 1 << 18, True
            return
        properties: Any = torch.cuda.get_device_properties(device)
        self.multiprocessors, self.interprets = int(properties.multi_processor_count), False
        self.shared_bytes = int(getattr(properties, "shared_memory_per_block_optin", 1 << 16))
