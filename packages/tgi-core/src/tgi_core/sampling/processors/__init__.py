"""Changes to logits before a token is chosen: one file for each kind, one line for each in `registry`."""
