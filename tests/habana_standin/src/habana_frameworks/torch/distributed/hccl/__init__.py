"""The library of collectives, over gloo; it knows the card's memory only, and each rank takes a card of its own."""

import os

import torch.distributed as dist
from habana_standin.collectives import HcclGroup

dist.Backend.register_backend("hccl", HcclGroup, devices=["cpu"])  # where the card's memory lies here


def initialize_distributed_hpu(world_size=None, rank=None, local_rank=None):
    os.environ |= {"WORLD_SIZE": str(world_size), "RANK": str(rank), "LOCAL_RANK": str(local_rank)}
    return world_size, rank, local_rank
