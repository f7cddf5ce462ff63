"""Which experts a token uses, and what they make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tgi_core.kernels.ops import Activation, LinearKernel


def choose_experts(scores: Tensor, each: int, sums_to_one: bool) -> tuple[Tensor, Tensor]:
    """The most likely of each row [T, K]."""
    weights, experts = scores.float().softmax(-1).topk(each, dim=-1)
    return weights / weights.sum(-1, keepdim=True) if sums_to_one else weights, experts


class Experts:
    """Tokens are sorted by expert, so that each expert that has any runs once over all of its own."""

    waits_for_device = True  #: for the number of tokens of each expert

    def __init__(
        self, linear: LinearKernel, activation: Activation, gate_up: Sequence[Any], down: Sequence[Any]
    ) -> None:
        self.linear, self.activation, self.gate_up, self.down = linear, activation, gate_up, down

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        each = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)
        rows = x[order // each]  # [T K, N]
        counts: list[int] = torch.bincount(chosen.flatten(), minlength=len(self.down)).tolist()
        active = [expert for expert, count in enumerate(counts) if count]
        parts = zip(active, torch.split(rows, [counts[expert] for expert in active]), strict=True)
        y = torch.empty_like(rows)
        y[order] = torch.cat([self._run(expert, part) for expert, part in parts])
        mixed = y.view(len(x), each, -1) * weights.unsqueeze(-1)
        return mixed.sum(1).to(x.dtype)

    def _run(self, expert: int, x: Tensor) -> Tensor:
        wide = self.activation(self.linear(x, self.gate_up[expert], None))
        y: Tensor = self.linear(wide, self.down[expert], None)
        return y


experts = Experts
