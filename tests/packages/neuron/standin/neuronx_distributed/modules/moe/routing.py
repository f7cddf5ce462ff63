import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid}


class RouterTopK(nn.Module):
    """Affinities of all experts, and the ids of the best [T, K]."""

    def __init__(self, num_experts, top_k, hidden_size, dtype=torch.float32, act_fn="softmax"):
        super().__init__()
        self.top_k, self.activation = top_k, ACTIVATIONS[act_fn]
        self.linear_router = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, x):
        logits = F.linear(x.float(), self.linear_router.weight.float())
        return self.activation(logits), logits.topk(self.top_k, -1).indices
