"""Stands in for neuronx_distributed at a tensor-parallel degree of 1, as far as optimum-neuron's decoders use it."""

from neuronx_distributed import parallel_layers

__all__ = ["parallel_layers"]
