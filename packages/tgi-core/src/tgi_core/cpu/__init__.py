"""The CPU backend: an ordinary backend that comes with the core."""
