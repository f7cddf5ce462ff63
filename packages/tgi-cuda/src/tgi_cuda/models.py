"""The model families that have been compared on a GPU: core's classes with this package's kernels."""

from __future__ import annotations

from dataclasses import replace

from tgi_core.models.families import FAMILIES

#: architectures that nobody has run on a GPU; core serves them there, and `tgi models` does not call them optimised
NOT_RUN: frozenset[str] = frozenset()

MODELS = tuple(replace(family, device="cuda") for family in FAMILIES if NOT_RUN.isdisjoint(family.architectures))
