from torch import nn


class MoE(nn.Module):
    def __init__(self, router, expert_mlps, shared_experts=None):
        super().__init__()
        self.router, self.expert_mlps, self.shared_experts = router, expert_mlps, shared_experts

    def forward(self, hidden):
        """hidden [B, T, N]"""
        x = hidden.flatten(0, -2)
        out = self.expert_mlps(x, *self.router(x))
        if self.shared_experts is not None:
            out = out + self.shared_experts(x)
        return (out.view_as(hidden),)
