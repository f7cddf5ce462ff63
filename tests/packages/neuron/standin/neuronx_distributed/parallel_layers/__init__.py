from neuronx_distributed.parallel_layers import parallel_state, random

__all__ = ["parallel_state", "random"]
