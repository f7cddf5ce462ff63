"""Facts about the device, its memory, and how a step is compiled."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
from tgi_core.device.backend import DeviceBackend
from tgi_core.device.capabilities import Capabilities


class ExampleVendorBackend(DeviceBackend):
    """Compiles each declared shape once, and runs no others."""

    capabilities = Capabilities(
        block_sizes=(16,),
        dtypes=("float32", "bfloat16"),
        static_shapes=True,
        batch_buckets=(1, 2, 4, 8),
        token_buckets=(16, 64, 256),
        mixture_buckets=(8,),
        chunked_prefill=True,
        prefix_caching=True,
        mixed_batches=True,
        prefill_tokens=240,
        batch_size=8,
        memory_fraction=0.1,
        host_memory=True,
    )
    runner = "tgi_example_vendor.runner:ExampleVendorRunner"

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.torch_device = torch.device("cpu")  # a real one: torch.device("example", rank)
        self.product = "Example One (pretended)"
        self.compiled = 0

    def free_bytes(self) -> int:
        return psutil.virtual_memory().available

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Hand `run` to the compiler, and return what starts the compiled graph."""
        self.compiled += 1
        return run
