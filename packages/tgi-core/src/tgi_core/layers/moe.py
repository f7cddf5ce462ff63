"""Feed-forward layers of which each token uses a few (arXiv 2101.03961, 2401.04088)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tgi_core.errors import UnsupportedModel
from tgi_core.kernels.ops import Experts
from tgi_core.layers.activation import gated_activation
from tgi_core.layers.build import BuildContext
from tgi_core.layers.packing import packing_of
from tgi_core.layers.shard import share
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.weights.loader import Source

#: where checkpoints keep the layer, and what they call gate, up and down of one expert there
LAYOUTS = {"block_sparse_moe": ("w1", "w3", "w2"), "mlp": ("gate_proj", "up_proj", "down_proj")}


class SparseMoE(nn.Module):
    """E gated experts; a router chooses K of them for each token.

    Args:
        size: of an expert's inner layer, over all ranks.
    """

    run_experts: Experts

    def __init__(self, config: ModelConfig, build: BuildContext, size: int) -> None:
        super().__init__()
        raw = config.raw
        self.experts: int = raw.get("num_local_experts") or raw["num_experts"]
        self.chosen: int = raw["num_experts_per_tok"]
        if not 1 <= self.chosen <= self.experts:
            raise UnsupportedModel(f"config.json asks for {self.chosen} of {self.experts} experts per token")
        self.sums_to_one = bool(raw.get("norm_topk_prob", False))
        self.hidden, self.size, self.dtype = config.hidden_size, share(size, build.group, "inner features"), build.dtype
        self.group = build.group
        self.kernel, self.plain_kernel, self.affine = build.linear, build.kernels.linear, build.kernels.linear_affine
        self.activation = gated_activation(config.activation, build.kernels)
        self.router: Any = None
        self.choose, self.experts_kernel = build.kernels.choose_experts, build.kernels.experts

    def load(self, source: Source) -> None:
        place = next(name for name in LAYOUTS if name == "mlp" or source.sibling(name).has("gate.weight"))
        source, names = source.sibling(place), LAYOUTS[place]
        self.router = self.plain_kernel.pack(source.read("gate.weight", self.experts, self.hidden, dtype=self.dtype))
        every = (f"experts.{expert}.{name}.weight" for expert in range(self.experts) for name in names)
        packing = packing_of(self.kernel, self.affine, self.dtype, map(source.keeps_levels, every))
        all_gate_up, all_down = [], []
        for expert in range(self.experts):
            gate_up = source.staging(2 * self.size, self.hidden, packing.staged)
            self._copy_gate_up(source, expert, names, gate_up)
            all_gate_up.append(packing.kernel.pack(gate_up))
            down = source.staging(self.hidden, self.size, packing.staged)
            self._copy_down(source, expert, names, down)
            all_down.append(packing.kernel.pack(down))
        self.run_experts = self.experts_kernel(packing.kernel, self.activation, all_gate_up, all_down)

    def _copy_gate_up(self, source: Source, expert: int, names: tuple[str, str, str], out: Tensor) -> None:
        whole, first = self.size * self.group.size, self.size * self.group.rank
        for part, name in enumerate(names[:2]):
            rows = out[part * self.size : (part + 1) * self.size]
            if source.has("experts.gate_up_proj"):
                shape, at = (self.experts, 2 * whole, self.hidden), (expert, part * whole + first, 0)
                source.copy("experts.gate_up_proj", rows.unsqueeze(0), shape, at)
            else:
                source.copy(f"experts.{expert}.{name}.weight", rows, (whole, self.hidden), (first, 0))

    def _copy_down(self, source: Source, expert: int, names: tuple[str, str, str], out: Tensor) -> None:
        whole, first = self.size * self.group.size, self.size * self.group.rank
        if source.has("experts.down_proj"):
            shape, at = (self.experts, self.hidden, whole), (expert, 0, first)
            source.copy("experts.down_proj", out.unsqueeze(0), shape, at)
        else:
            source.copy(f"experts.{expert}.{names[2]}.weight", out, (self.hidden, whole), (0, first))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, N] -> (weights [T, K] in float32, experts [T, K])"""
        return self.choose(self.plain_kernel(x, self.router, None), self.chosen, self.sums_to_one)

    def forward(self, x: Tensor) -> Unsummed:
        weights, chosen = self.route(x)
        return Unsummed(self.run_experts(x, chosen, weights), self.group)

    @property
    def waits_for_device(self) -> bool:
        """Whether its steps cannot be recorded."""
        return self.run_experts.waits_for_device
