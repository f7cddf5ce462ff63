"""Stands in for the compiler's package; `neuronx_distributed.trace.model_builder` has what compiles."""

__version__ = "2.21.33363.0"
