"""A GPU that PyTorch calls "cuda": graphs, streams, pinned memory and events are the same for every vendor of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from tgi_core.device.backend import DeviceBackend, Download
from tgi_core.device.capabilities import FLOAT8, MODEL_DTYPE, Capabilities
from tgi_core.device.side_by_side import pieces_of, tensor_in

BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, *range(160, 513, 32))
TOKEN_BUCKETS = (
    16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192
)  # fmt: skip
FEW_TOKENS, FEW_ROWS = 1024, 64  #: of steps with prompts, which are recorded whatever the model
#: tokens times bytes of weights of a larger step that is recorded, which an H200 computes in 5 ms: with its padding it
#: takes no longer than Python takes to call it layer by layer
MOST_RECORDED = 3 * 10**12


class TorchGpu(DeviceBackend):
    """Works by itself: steps are told ahead, results are read when they are there.

    Subclasses say what else is true of their devices, in `capabilities` and `collectives_environment`.
    """

    capabilities = Capabilities(
        block_sizes=(32, 16, 64, 128),
        dtypes=("bfloat16", "float16", "float32"),
        kv_dtypes=(MODEL_DTYPE, *FLOAT8),
        batch_buckets=BUCKETS,
        token_buckets=TOKEN_BUCKETS,
        mixture_buckets=(8, 64, 512),
        record_ahead=True,
        asynchronous=True,
        prefill_tokens=8192,
        mixed_tokens=2048,
        batch_size=512,
        memory_fraction=0.95,  # the rest is for recordings, and for what sampling takes
        tells_memory=True,
    )
    runner = "tgi_core.runner.graph:GraphRunner"
    collectives = "nccl"  #: and what answers to that name

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        if size > 1:
            torch.cuda.set_device(rank)
        self.size = size
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self.product = torch.cuda.get_device_name(self.torch_device)
        self._capture_stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        self._graph_pool = torch.cuda.graph_pool_handle()
        self._downloads = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        self._last_download = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._staging = (_Pinned(), _Pinned())

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Leave out what is not worth recording: of models that are divided, too, which are large, and of which ranks
        hold different bytes."""
        weights = torch.cuda.memory_allocated(self.torch_device)
        most = MOST_RECORDED // weights if weights and self.size == 1 else 0
        tokens, rows = self.capabilities.token_buckets, self.capabilities.mixture_buckets
        self.capabilities = replace(
            self.capabilities,
            token_buckets=tuple(size for size in tokens if size <= max(FEW_TOKENS, most)),
            mixture_buckets=tuple(size for size in rows if size <= FEW_ROWS or most > FEW_TOKENS),
        )
        return super().prepare_model(model)

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.torch_device)[0])

    def release(self) -> None:
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        self.synchronize()
        with torch.cuda.stream(self._capture_stream):
            graph.capture_begin(pool=self._graph_pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()

        def replay() -> None:
            torch.cuda.current_stream(self.torch_device).wait_event(self._last_download)  # which this overwrites
            graph.replay()

        return replay

    def upload(self, array: npt.NDArray[Any], out: Tensor | None = None) -> Tensor:
        host = torch.from_numpy(array).pin_memory()
        if out is None:
            return host.to(self.torch_device, non_blocking=True)
        return out.copy_(host, non_blocking=True)

    def download(self, tensors: Sequence[Tensor]) -> Download:
        host: dict[int, Tensor] = {}
        pieces = pieces_of(tensors)
        self._downloads.wait_stream(torch.cuda.current_stream(self.torch_device))
        with torch.cuda.stream(self._downloads):  # beside what the next step uploads
            for source, firsts in pieces:
                copy = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
                copy.copy_(source, non_blocking=True)
                host |= {number: tensor_in(copy, first, tensors[number]) for number, first in firsts.items()}
            self._last_download = event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        found = tuple(host[number] for number in range(len(tensors)))
        return Download(found, event.query, event.synchronize, tuple(tensors))

    def copy_weight(self, out: Tensor, stored: Tensor) -> None:
        """One buffer is filled while the other is on its way."""
        self._staging = self._staging[::-1]
        self._staging[0].copy(out, stored)


class _Pinned:
    """Host memory that the GPU reads by itself."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._read = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copy(self, out: Tensor, stored: Tensor) -> None:
        """Wait until the copy before is done, then begin this one."""
        self._read.synchronize()
        if len(self._bytes) < stored.nbytes:
            self._bytes = torch.empty(stored.nbytes, dtype=torch.uint8, pin_memory=True)
        host = self._bytes[: stored.nbytes].view(stored.dtype).view(stored.shape)
        out.copy_(host.copy_(stored), non_blocking=True)
        self._read.record()
