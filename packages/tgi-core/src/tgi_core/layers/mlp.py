"""Feed-forward layers."""

from __future__ import annotations

from torch import Tensor, nn

from tgi_core.errors import UnsupportedModel
from tgi_core.kernels.ops import Activation, Kernels
from tgi_core.layers.build import BuildContext
from tgi_core.layers.linear import Linear
from tgi_core.model_config import ModelConfig


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, build: BuildContext, *, bias: bool = False) -> None:
        super().__init__()
        hidden, wide = config.hidden_size, config.intermediate_size
        self.gate_up_proj = Linear(hidden, (wide, wide), ("gate_proj", "up_proj"), build, bias=bias)
        self.down_proj = Linear(wide, (hidden,), ("down_proj",), build, bias=bias)
        self.activation = gated_activation(config.activation, build.kernels)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(self.activation(self.gate_up_proj(x)))
        return down


def gated_activation(name: str, kernels: Kernels) -> Activation:
    """The op for config.json's `hidden_act`."""
    table = {"silu": kernels.silu_and_mul, "swish": kernels.silu_and_mul}
    if name not in table:
        raise UnsupportedModel(f"activation {name!r} is not implemented; known are {', '.join(table)}")
    return table[name]
