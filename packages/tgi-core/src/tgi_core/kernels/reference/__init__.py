"""What each op means, in plain PyTorch: the oracle of the contract tests and the fallback of every device."""
