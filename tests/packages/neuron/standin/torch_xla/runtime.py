"""Asked by optimum-neuron's cache of training runs only."""
