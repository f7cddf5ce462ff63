"""The interface of a quantization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from tgi_core.kernels.ops import Kernels, LinearKernel
from tgi_core.weights.reader import WeightReader


class Quantization(ABC):
    """One way to keep the weights of linear layers.

    Args:
        stored: the checkpoint's own `quantization_config`; empty where weights are quantised while they load.
    """

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.stored = stored

    @abstractmethod
    def linear(self, kernels: Kernels) -> LinearKernel:
        """The op for weights in this form; routers of experts stay in the model's dtype."""

    def open(self, reader: WeightReader) -> WeightReader:
        """The checkpoint with plain weights under their usual names, for `LinearKernel.pack`."""
        return reader
