"""Layers that are divided over cores, whole on one; their options only say how to divide."""

import torch
from torch import nn
from torch.nn import functional as F

from neuronx_distributed.parallel_layers.parallel_state import get_tensor_model_parallel_group


class _Linear(nn.Module):
    def __init__(self, input_size, output_size, bias=True, *, dtype=torch.float32, gather_output=True, **dividing):
        super().__init__()
        unknown = set(dividing) - {"pad", "tensor_model_parallel_group", "input_is_parallel", "reduce_dtype"}
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(output_size, dtype=dtype), requires_grad=False) if bias else None
        self.gather_output, self.pad_size = gather_output, 0
        self.tensor_parallel_group = dividing.get("tensor_model_parallel_group") or get_tensor_model_parallel_group()

    def forward(self, x, *_):
        return F.linear(x, self.weight, self.bias)


class ColumnParallelLinear(_Linear):
    pass


class RowParallelLinear(_Linear):
    pass


class ParallelEmbedding(nn.Module):
    def __init__(self, count, size, padding_idx=None, *, dtype=torch.float32, shard_across_embedding=False, pad=False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, size, dtype=dtype), requires_grad=False)

    def forward(self, ids):
        return F.embedding(ids, self.weight)


class SPMDRank(nn.Module):
    """Which rank a graph runs as; all ranks run the same graph."""

    def __init__(self, world_size, tensor_model_parallel_size=None):
        super().__init__()
        self.rank = nn.Parameter(torch.zeros(1, dtype=torch.int32), requires_grad=False)

    def get_rank(self):
        return self.rank
