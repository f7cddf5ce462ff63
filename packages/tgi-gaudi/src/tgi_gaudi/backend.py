"""Gaudi cards as a device."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from tgi_core.device.backend import DeviceBackend
from tgi_core.device.capabilities import Capabilities
from tgi_core.errors import ConfigError
from tgi_gaudi.settings import GaudiSettings, read_settings
from tgi_gaudi.shapes import multiples

BATCH_BUCKETS = 4  #: shapes of decodes, unless a person asks for more with --max-batch-size
PACKED = "there is no kernel for it on Gaudi here; use the original checkpoint in bfloat16, or QUANT_CONFIG for float8"
HOST = torch.device("cpu")

CAPABILITIES = Capabilities(
    block_sizes=(128,),
    dtypes=("bfloat16", "float32"),
    static_shapes=True,
    chunked_prefill=False,
    prefix_caching=False,
    mixed_batches=False,
    memory_fraction=0.8,  # what graphs take is not known before they are recorded
    refused_quantizations=dict.fromkeys(("awq", "gptq", "fp8", "fbgemm_fp8", "int4", "int8"), PACKED),
)


class StaticBackend(DeviceBackend):
    """A device that compiles for fixed shapes: tokens are chosen on the host, where shapes may vary."""

    settings: GaudiSettings
    capabilities = CAPABILITIES
    runner = "tgi_gaudi.runner:PaddedRunner"

    @property
    def sampling_device(self) -> torch.device:
        return HOST

    def upload_for_sampling(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array)

    def upload(self, array: npt.NDArray[Any], out: Tensor | None = None) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.to(self.torch_device, copy=True) if out is None else out.copy_(tensor)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The same module, whose calls are recorded, one for each shape of its arguments, and repeated.

        What it returns is overwritten by the next call of that shape.
        """
        return module


def capabilities_for(settings: GaudiSettings) -> Capabilities:
    """What the settings make of the device."""
    most = BATCH_BUCKETS * settings.batch_bucket_size
    return replace(
        CAPABILITIES,
        batch_buckets=multiples(settings.batch_bucket_size, most),
        prefill_rows=settings.prefill_batch_bucket_size,
        batch_size=most,
    )


class GaudiBackend(StaticBackend):
    """One card, which PyTorch calls "hpu" once Habana's plugin is imported.

    Raises:
        ConfigError: an environment variable says what cannot be.
    """

    collectives = "hccl"
    #: without it sums over cards are no part of a graph
    collectives_environment = {"PT_HPU_ENABLE_LAZY_COLLECTIVES": "true"}  # noqa: RUF012 - never written

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.settings = read_settings()
        if self.settings.enable_hpu_graph and self.settings.lazy_mode:
            os.environ.setdefault("PT_HPU_LAZY_MODE", "1")  # read by Habana's plugin when it is imported
        if self.settings.quant_config is not None and importlib.util.find_spec("neural_compressor") is None:
            raise ConfigError(
                "QUANT_CONFIG: float8 needs Intel Neural Compressor; pip install neural_compressor_pt, or leave it out"
            )
        if size > 1:  # before the process takes a card
            hccl = importlib.import_module("habana_frameworks.torch.distributed.hccl")
            hccl.initialize_distributed_hpu(world_size=size, rank=rank, local_rank=rank)
        self._core = importlib.import_module("habana_frameworks.torch.core")
        self._hpu = importlib.import_module("habana_frameworks.torch.hpu")
        self.capabilities = capabilities_for(self.settings)
        self.torch_device = torch.device("hpu")
        self.product = str(self._hpu.get_device_name())

    def free_bytes(self) -> int:
        return int(self._hpu.mem_get_info()[0])

    def synchronize(self) -> None:
        self._core.mark_step()
        self._hpu.synchronize()

    def wrap(self, module: nn.Module) -> nn.Module:
        if not (self.settings.enable_hpu_graph and self.settings.lazy_mode):
            return module
        wrapped: nn.Module = self._hpu.wrap_in_hpu_graph(module, disable_tensor_cache=True)
        return wrapped
