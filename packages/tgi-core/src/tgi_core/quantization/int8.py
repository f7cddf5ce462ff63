"""int8, quantised while loading."""

from __future__ import annotations

from tgi_core.kernels.ops import Kernels, LinearKernel
from tgi_core.quantization.base import Quantization


class Int8(Quantization):
    """Half of bfloat16's memory: each output's weights share one scale, rounding is to the nearest."""

    layer_bits = head_bits = 8.0

    def linear(self, kernels: Kernels) -> LinearKernel:
        return kernels.linear_int8
