"""The model families that have been compared on a GPU, which are all: core's classes with this package's kernels."""

from __future__ import annotations

from dataclasses import replace

from tgi_core.models.families import FAMILIES

MODELS = tuple(replace(family, device="cuda") for family in FAMILIES)
