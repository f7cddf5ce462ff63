"""Layers of experts in shapes that never vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tgi_core.kernels.ops import Activation, LinearKernel


class EveryExpert:
    """Each expert computes every token, and what the router did not choose counts nothing.

    How many tokens an expert has is known to the device only, so sorting them by expert would wait for it, and compile
    for every number.
    """

    waits_for_device = False

    def __init__(
        self, linear: LinearKernel, activation: Activation, gate_up: Sequence[Any], down: Sequence[Any]
    ) -> None:
        self.linear, self.activation, self.gate_up, self.down = linear, activation, gate_up, down

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        mixed = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert, (gate_up, down) in enumerate(zip(self.gate_up, self.down, strict=True)):
            share = (weights * (chosen == expert)).sum(-1, keepdim=True)
            mixed += self.linear(self.activation(self.linear(x, gate_up, None)), down, None) * share
        return mixed.to(x.dtype)
