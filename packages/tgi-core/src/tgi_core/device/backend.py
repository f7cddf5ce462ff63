"""What a hardware vendor implements: facts about the device, and the few things only it can do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from tgi_core.device.capabilities import Capabilities


class DeviceBackend(ABC):
    """One kind of device, in one engine process."""

    capabilities: Capabilities
    torch_device: torch.device
    product: str  #: name of the device that is used
    runner: str = "tgi_core.runner.eager:EagerRunner"  #: target of the Runner subclass

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory on this device that weights and KV cache may take."""

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Last change to a loaded model: graph wrapping, marks between layers, compilation."""
        return model
