"""The host's processor as a device."""

from __future__ import annotations

import torch

from tgi_core.cpu import processor
from tgi_core.device.backend import DeviceBackend
from tgi_core.device.capabilities import Capabilities

_BEST_FIRST = ("bfloat16", "float32") if processor.has_fast_bfloat16() else ("float32", "bfloat16")


class CpuBackend(DeviceBackend):
    """Works while it is called; memory is the host's."""

    capabilities = Capabilities(
        block_sizes=(32, 64),
        dtypes=_BEST_FIRST,
        prefill_tokens=512,
        batch_size=64,
        host_memory=True,
        memory_fraction=0.4,
    )
    torch_device = torch.device("cpu")

    def __init__(self) -> None:
        self.product = processor.product()
        torch.set_num_threads(processor.usable_cores())

    def free_bytes(self) -> int:
        return processor.available_bytes()
