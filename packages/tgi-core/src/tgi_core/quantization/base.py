"""The interface of a quantization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from tgi_core.kernels.ops import Kernels, LinearKernel
from tgi_core.weights.reader import WeightReader


class Quantization(ABC):
    """One way to keep the weights of linear layers.

    Args:
        stored: the checkpoint's own `quantization_config`; empty where weights are quantised while they load.
    """

    #: that a weight takes, with its share of scales; None: those of the dtype.  Known once `linear` was called
    layer_bits: float | None = None
    head_bits: float | None = None  #: the same in the matrix that makes logits
    calibration_tokens: ClassVar[int] = 0  #: that the model reads within `calibrating`, before it is loaded again

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.stored = stored

    @abstractmethod
    def linear(self, kernels: Kernels) -> LinearKernel:
        """The op for weights in this form; routers of experts stay in the model's dtype."""

    def head(self, kernels: Kernels) -> LinearKernel:
        """The op for the matrix that makes logits."""
        return self.linear(kernels)

    def calibrating(self) -> AbstractContextManager[None]:
        """Within it, layers see what they will be given; weights loaded after it can be rounded with that in mind."""
        return nullcontext()

    def open(self, reader: WeightReader) -> WeightReader:
        """The checkpoint with plain weights under their usual names, for `LinearKernel.pack`."""
        return reader
