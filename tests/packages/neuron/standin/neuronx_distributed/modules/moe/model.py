from torch import nn


class MoE(nn.Module):
    def __init__(self, router, expert_mlps, shared_experts=None):
        super().__init__()
        if shared_experts is not None:
            raise NotImplementedError("shared experts have no stand-in")
        self.router, self.expert_mlps = router, expert_mlps

    def forward(self, hidden):
        """hidden [B, T, N]"""
        x = hidden.flatten(0, -2)
        return (self.expert_mlps(x, *self.router(x)).view_as(hidden),)
