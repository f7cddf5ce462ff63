"""Feed-forward layers: [T, N] -> [T, N], whose inner features are divided over ranks."""

from __future__ import annotations

from torch import Tensor, nn

from tgi_core.layers.activation import activation, gated_activation
from tgi_core.layers.build import BuildContext
from tgi_core.layers.linear import ColumnLinear, RowLinear
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (arXiv 2002.05202).

    Args:
        size: of the inner layer on this rank, where it is not the config's.
        names: what the checkpoint calls gate, up and down.
    """

    def __init__(
        self,
        config: ModelConfig,
        build: BuildContext,
        *,
        bias: bool = False,
        size: int | None = None,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        super().__init__()
        hidden, wide = config.hidden_size, size or config.intermediate_size
        self.gate_up_proj = ColumnLinear(hidden, (wide, wide), names[:2], build, bias=bias)
        self.down_proj = RowLinear(wide, (hidden,), names[2:], build, bias=bias)
        self.activation = gated_activation(config.activation, build.kernels)

    def forward(self, x: Tensor) -> Unsummed:
        y: Unsummed = self.down_proj(self.gate_up_proj.gated(x, self.activation))
        return y


class MLP(nn.Module):
    """out(act(in(x))).

    Args:
        names: what the checkpoint calls the two matrices.
        transposed: see `Linear`.
    """

    def __init__(
        self,
        config: ModelConfig,
        build: BuildContext,
        names: tuple[str, str],
        *,
        bias: bool,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        hidden, wide = config.hidden_size, config.intermediate_size
        self.up = ColumnLinear(hidden, (wide,), names[:1], build, bias=bias, transposed=transposed)
        self.down = RowLinear(wide, (hidden,), names[1:], build, bias=bias, transposed=transposed)
        self.activation = activation(config.activation, build.kernels)

    def forward(self, x: Tensor) -> Unsummed:
        y: Unsummed = self.down(self.activation(self.up(x)))
        return y
