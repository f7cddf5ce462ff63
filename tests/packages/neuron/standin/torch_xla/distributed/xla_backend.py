"""Imported by optimum-neuron's training code, never called."""
