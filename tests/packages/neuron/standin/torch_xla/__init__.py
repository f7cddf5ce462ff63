"""Stands in for torch_xla: nothing here runs on XLA."""

__version__ = "2.8.0"
