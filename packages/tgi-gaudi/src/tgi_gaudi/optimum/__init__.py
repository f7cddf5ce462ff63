"""Runs the model classes of optimum-habana: one slot for each sequence, and one place where all of them write next."""
