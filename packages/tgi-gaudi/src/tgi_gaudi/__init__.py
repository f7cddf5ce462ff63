"""Gaudi devices for tgi."""
