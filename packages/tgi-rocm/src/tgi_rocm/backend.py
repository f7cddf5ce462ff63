"""An AMD GPU as a device: PyTorch built for ROCm calls it "cuda", and RCCL "nccl"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tgi_core.device.torch_gpu import TorchGpu
from tgi_core.errors import DeviceUnavailable
from tgi_rocm.chips import REFUSED_KV_DTYPES, REFUSED_QUANTIZATIONS, why_not


class RocmBackend(TorchGpu):
    """What is particular to AMD's.

    Raises:
        DeviceUnavailable: PyTorch is not built for ROCm, or no kernels are compiled for this GPU.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        if torch.version.hip is None:
            raise DeviceUnavailable(f"PyTorch {torch.__version__} is built without ROCm; install a ROCm build of it")
        super().__init__(rank, size)
        properties: Any = torch.cuda.get_device_properties(self.torch_device)
        gfx, *_ = properties.gcnArchName.split(":")  # "gfx90a:sramecc+:xnack-"
        if reason := why_not(gfx):
            raise DeviceUnavailable(f"{self.product}: {reason}; choose another one with HIP_VISIBLE_DEVICES")
        able = replace(self.capabilities, refused_quantizations=REFUSED_QUANTIZATIONS[gfx])
        self.capabilities = able.without_kv_dtypes(REFUSED_KV_DTYPES[gfx])
