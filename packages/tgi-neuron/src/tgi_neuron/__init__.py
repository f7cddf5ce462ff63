"""Neuron devices for tgi."""
