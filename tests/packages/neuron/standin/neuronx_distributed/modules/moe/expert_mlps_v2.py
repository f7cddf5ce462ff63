import torch
from torch import nn
from transformers.activations import ACT2FN

from .expert_mlps import _Weight


class ExpertMLPsV2(nn.Module):
    """Gated experts, which are given tokens times their affinities; weights are [E, N, 2 I] and [E, I, N]."""

    def __init__(self, routed_experts_mlp_config, dtype=torch.float32):
        super().__init__()
        config = routed_experts_mlp_config
        if not config.glu_mlp or not config.early_expert_affinity_modulation:
            raise NotImplementedError("experts without gates, or whose outputs are weighed, have no stand-in")
        self.activation = ACT2FN[config.hidden_act]
        self.mlp_op = nn.Module()
        self.mlp_op.gate_up_proj = _Weight(config.num_experts, config.hidden_size, 2 * config.intermediate_size)
        self.mlp_op.down_proj = _Weight(config.num_experts, config.intermediate_size, config.hidden_size)

    def forward(self, x, affinities, chosen):
        """x [T, N], affinities [T, E], chosen [T, K]"""
        out = torch.zeros_like(x)
        for expert in range(affinities.shape[-1]):
            row, _ = (chosen == expert).nonzero(as_tuple=True)
            given = (x[row] * affinities[row, expert, None]).to(x.dtype)
            gate, up = (given @ self.mlp_op.gate_up_proj.weight[expert]).chunk(2, -1)
            out.index_add_(0, row, (self.activation(gate) * up) @ self.mlp_op.down_proj.weight[expert])
        return out
