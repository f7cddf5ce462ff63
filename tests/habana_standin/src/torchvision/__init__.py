"""optimum-habana imports it and does not ask for it; the real one does not load beside PyTorch's CPU build."""
