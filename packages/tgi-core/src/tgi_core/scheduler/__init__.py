"""Decides which sequences run in a step, and on which blocks.  Imports no torch."""
