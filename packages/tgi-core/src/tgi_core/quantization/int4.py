"""int4, quantised while loading."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tgi_core.kernels.ops import GroupedLinearKernel, Kernels, LinearKernel
from tgi_core.quantization.base import Quantization

LEAST_ROWS = 32  #: that tell how large inputs are


class Int4(Quantization):
    """A little more than a quarter of bfloat16's memory: groups of 32 weights share a step and an offset.

    The head, of which every token needs all, is int8.  Weights are rounded twice: the model of the first time reads
    random tokens, which shows how large each input of a layer is; the second time, errors there count as much (the
    diagonal of the Hessian that GPTQ uses, arXiv 2210.17323).  Some inputs are much larger than others in any text.
    """

    layer_bits, head_bits = 4.5, 8.0
    calibration_tokens = 512

    def linear(self, kernels: Kernels) -> LinearKernel:
        self._kernel = CalibratedLinear(kernels.linear_int4)
        return self._kernel

    def head(self, kernels: Kernels) -> LinearKernel:
        return kernels.linear_int8

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        self._kernel.watch()
        yield
        self._kernel.learn()


class CalibratedLinear:
    """Packs weights twice in the same order, the second time by what each was multiplied with in between."""

    def __init__(self, kernel: GroupedLinearKernel) -> None:
        self.kernel = kernel
        self._order: list[int] | None = []  # ids of packed weights; None once they are not needed any more
        self._inputs: dict[int, tuple[Tensor, int]] | None = None  # id -> sums of squares [N], rows; while watching
        self._learned: deque[Tensor | None] = deque()

    def pack(self, weight: Tensor) -> Any:
        packed = self.kernel.pack(weight, self._learned.popleft() if self._learned else None)
        if self._order is not None:
            self._order.append(id(packed))
        return packed

    def __call__(self, x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
        if self._inputs is not None:
            sums, rows = self._inputs.get(id(packed), (0.0, 0))
            self._inputs[id(packed)] = sums + x.float().square().sum(0), rows + len(x)
        return self.kernel(x, packed, bias)

    @property
    def direct(self) -> LinearKernel:
        """What multiplies, for those who call it themselves; this one, as long as inputs matter."""
        return self.kernel if self._order is None else self

    def watch(self) -> None:
        """Begin to add up what weights are multiplied with."""
        self._inputs = {}

    def learn(self) -> None:
        """Take what was seen into account when the weights are packed again."""
        inputs, order = self._inputs or {}, self._order or []
        self._learned = deque(_mean_squares(*inputs[key]) if key in inputs else None for key in order)
        self._inputs = self._order = None


def _mean_squares(sums: Tensor, rows: int) -> Tensor | None:
    """How much errors at each input matter; None where too little was seen."""
    return sums / rows if rows >= LEAST_ROWS and bool(torch.isfinite(sums).all()) else None
