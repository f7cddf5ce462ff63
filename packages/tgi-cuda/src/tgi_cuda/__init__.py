"""NVIDIA devices for tgi."""
