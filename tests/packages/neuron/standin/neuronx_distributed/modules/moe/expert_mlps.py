import torch
from torch import nn
from transformers.activations import ACT2FN


class _Weight(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)


class ExpertMLPs(nn.Module):
    """Gated experts; weights are [E, N, 2 I] and [E, I, N]."""

    def __init__(
        self, num_experts, top_k, hidden_size, intermediate_size, hidden_act, glu_mlp,
        capacity_factor=None, normalize_top_k_affinities=False,
    ):  # fmt: skip
        super().__init__()
        if not glu_mlp or capacity_factor is not None:
            raise NotImplementedError("experts without gates, or of limited capacity, have no stand-in")
        self.activation, self.normalize = ACT2FN[hidden_act], normalize_top_k_affinities
        self.mlp_op = nn.Module()
        self.mlp_op.gate_up_proj = _Weight(num_experts, hidden_size, 2 * intermediate_size)
        self.mlp_op.down_proj = _Weight(num_experts, intermediate_size, hidden_size)

    def forward(self, x, affinities, chosen):
        """x [T, N], affinities [T, E], chosen [T, K]"""
        weights = affinities.gather(-1, chosen)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for expert in range(affinities.shape[-1]):
            row, rank = (chosen == expert).nonzero(as_tuple=True)
            gate, up = (x[row] @ self.mlp_op.gate_up_proj.weight[expert]).chunk(2, -1)
            y = (self.activation(gate) * up) @ self.mlp_op.down_proj.weight[expert]
            out.index_add_(0, row, (y * weights[row, rank, None]).to(x.dtype))
        return out
