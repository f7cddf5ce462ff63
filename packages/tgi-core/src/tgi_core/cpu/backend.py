"""The host's processor as a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from tgi_core.cpu import processor, topology
from tgi_core.cpu.linear import Packed
from tgi_core.cpu.recording import record
from tgi_core.device.backend import DeviceBackend
from tgi_core.device.capabilities import FLOAT8, MODEL_DTYPE, Capabilities

_BEST_FIRST = ("bfloat16", "float32") if processor.has_fast_bfloat16() else ("float32", "bfloat16")
BUCKETS = (*range(1, 9), *range(10, 33, 2), *range(36, 65, 4))  #: of rows: one more costs little memory and time
TOKEN_BUCKETS = (8, 16, 24, 32, 48, 64)  #: more tokens compute for longer than Python takes


class CpuBackend(DeviceBackend):
    """Works while it is called; memory is the host's."""

    capabilities = Capabilities(
        block_sizes=(32, 64),
        dtypes=_BEST_FIRST,
        kv_dtypes=(MODEL_DTYPE, *FLOAT8),
        batch_buckets=BUCKETS,
        token_buckets=TOKEN_BUCKETS,
        mixture_buckets=(1, 8, 32),
        prefill_tokens=512,
        batch_size=64,
        host_memory=True,
        memory_fraction=0.4,
    )
    torch_device = torch.device("cpu")
    runner = "tgi_core.runner.graph:GraphRunner"
    collectives = "gloo"
    collectives_environment = {"GLOO_SOCKET_IFNAME": topology.loopback()}  # noqa: RUF012 - never written

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.product = processor.product()
        self._size = size
        self._undo_share: Callable[[], object] = lambda: None
        if size > 1:
            # what waits for others is not recorded
            self.capabilities = replace(self.capabilities, batch_buckets=(), token_buckets=())
            self._undo_share = topology.take_share(rank, size)
        self._step_memory: list[Tensor] = []  # of all recordings, as they run one at a time
        topology.spread_memory()

    def free_bytes(self) -> int:
        return processor.available_bytes() // self._size

    def close(self) -> None:
        self._undo_share()

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Give PyTorch threads only where it computes: they wait for work on the cores of the compiled kernels."""
        compiled = any(isinstance(getattr(module, "packed", None), Packed) for module in model.modules())
        torch.set_num_threads(1 if compiled else topology.threads())
        return model

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return record(run, self._step_memory)
