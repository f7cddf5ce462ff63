"""An NVIDIA GPU as a device."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
import torch.distributed as dist

from tgi_core.device.torch_gpu import TorchGpu
from tgi_core.distributed.group import Sums
from tgi_cuda.float8 import refused_kv_dtypes

log = logging.getLogger(__name__)

BFLOAT16_FROM = (8, 0)  #: compute capability whose matrix units know it


class CudaBackend(TorchGpu):
    """What is particular to NVIDIA's."""

    #: multicast through the switch of NVLink needs more of driver and container than sums of a step are worth
    collectives_environment = {"NCCL_NVLS_ENABLE": "0"}  # noqa: RUF012 - never written

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        super().__init__(rank, size)
        capability = torch.cuda.get_device_capability(self.torch_device)
        self.capabilities = self.capabilities.without_kv_dtypes(refused_kv_dtypes(capability))
        if capability < BFLOAT16_FROM:
            able = tuple(dtype for dtype in self.capabilities.dtypes if dtype != "bfloat16")
            self.capabilities = replace(self.capabilities, dtypes=able)

    def sums(self, group: dist.ProcessGroup) -> Sums | None:
        try:
            from tgi_cuda.sums import SymmetricSums  # of Triton, which PyTorch does not bring everywhere

            return SymmetricSums(group, self.torch_device)
        except (ImportError, RuntimeError) as error:
            log.info("the collectives' library sums up over GPUs: %s", error)
            return None
