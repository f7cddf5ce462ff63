import torch
from torch import nn
from torch.nn import functional as F


class RouterTopK(nn.Module):
    """Affinities of all experts by softmax, and the ids of the best [T, K]."""

    def __init__(self, num_experts, top_k, hidden_size, dtype=torch.float32, act_fn="softmax"):
        super().__init__()
        if act_fn != "softmax":
            raise NotImplementedError(f"a router with {act_fn} has no stand-in")
        self.top_k = top_k
        self.linear_router = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, x):
        logits = F.linear(x.float(), self.linear_router.weight.float())
        return logits.softmax(-1), logits.topk(self.top_k, -1).indices
