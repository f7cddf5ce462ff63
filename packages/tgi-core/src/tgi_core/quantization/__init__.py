"""Weights in fewer bits: how checkpoints store them, and which op multiplies them."""
