"""Runs the model on one plan after another."""
