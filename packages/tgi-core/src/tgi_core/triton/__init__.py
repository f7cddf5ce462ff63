"""Triton kernels, one source for every kind of GPU; plugins register them, and the chosen ones are imported."""
