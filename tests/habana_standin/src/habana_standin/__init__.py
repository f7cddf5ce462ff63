"""Tests' side of the stand-in: what was compiled, and a host that has a card."""
