import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from .expert_mlps import _Weight


class SharedExperts(nn.Module):
    """A gated expert that every token is given to; weights are [2 I, N] and [N, I]."""

    def __init__(
        self, hidden_size, intermediate_size, num_shared_experts, hidden_act,
        dtype=torch.float32, reduce_dtype=torch.float32, fused_gate_up_projection=False,
    ):  # fmt: skip
        super().__init__()
        if num_shared_experts != 1 or not fused_gate_up_projection:
            raise NotImplementedError("several shared experts, or projections apart, have no stand-in")
        self.activation = ACT2FN[hidden_act]
        self.gate_up_proj = _Weight(2 * intermediate_size, hidden_size)
        self.down_proj = _Weight(hidden_size, intermediate_size)

    def forward(self, x):
        gate, up = F.linear(x, self.gate_up_proj.weight).chunk(2, -1)
        return F.linear(self.activation(gate) * up, self.down_proj.weight)
