"""The engine of tgi: scheduler, KV cache, models and the plugin system for hardware.

`from tgi_core import Engine` works; importing `tgi_core` itself imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgi_core.config import EngineConfig as EngineConfig
    from tgi_core.engine.engine import Engine as Engine
    from tgi_core.sampling_params import SamplingParams as SamplingParams

_HOME = {
    "Engine": "tgi_core.engine.engine",
    "EngineConfig": "tgi_core.config",
    "SamplingParams": "tgi_core.sampling_params",
}

__all__ = ["Engine", "EngineConfig", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tgi_core' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
