import torch


def argmax(tensor, dim, gather_dim, keepdim=False, process_group=None):
    return torch.argmax(tensor, dim, keepdim)
