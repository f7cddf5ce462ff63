"""Stands in for the package that keeps compiled graphs."""
