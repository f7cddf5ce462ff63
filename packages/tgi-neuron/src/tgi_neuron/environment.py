"""The variables that this plugin reads: text-generation-inference's for Neuron, and ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tgi_core.errors import ConfigError

CORES = "HF_NUM_CORES"
CAST = "HF_AUTO_CAST_TYPE"
SAMPLING = "TGI_NEURON_SAMPLING"
CACHE = "TGI_NEURON_CACHE"
#: what text-generation-inference and optimum-neuron call number formats
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class Variables:
    """What they say; None = not set."""

    cores: int | None
    dtype: str | None
    sampling: str | None  #: "host" | "device"
    cache: Path  #: of compiled models


def read(environ: Mapping[str, str] = os.environ) -> Variables:
    """The variables.

    Raises:
        ConfigError: one of them cannot be understood.
    """
    return Variables(
        cores=_cores(environ.get(CORES)),
        dtype=_one_of(CAST, {**DTYPES, **{name: name for name in DTYPES.values()}}, environ.get(CAST)),
        sampling=_one_of(SAMPLING, {name: name for name in ("host", "device")}, environ.get(SAMPLING)),
        cache=Path(environ.get(CACHE) or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "tgi/neuron").expanduser(),
    )


def _cores(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{CORES}={text}: must be a number of Neuron cores, at least 1")
    return int(text)


def _one_of(name: str, values: Mapping[str, str], text: str | None) -> str | None:
    if not text:
        return None
    if text.lower() not in values:
        raise ConfigError(f"{name}={text}: must be one of {', '.join(values)}")
    return values[text.lower()]
