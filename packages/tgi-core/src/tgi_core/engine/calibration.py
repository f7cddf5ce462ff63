"""Weights that are rounded with an eye on what their layers are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tgi_core.engine.build import Parts


@contextmanager
def calibration(parts: Parts) -> Iterator[None]:
    """Within it layers look at what they are given; after it the weights are loaded again."""
    if parts.quantization is None:
        yield
        return
    parts.runner.layer_by_layer = True
    with parts.quantization.calibrating():
        yield
    parts.runner.layer_by_layer = False
    parts.load_weights()
