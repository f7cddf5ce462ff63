"""The environment variables that tgi-gaudi's users know, read here and nowhere else.  Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgi_core.errors import ConfigError

TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


@dataclass(frozen=True, kw_only=True)
class GaudiSettings:
    """How shapes are padded and what is compiled."""

    batch_bucket_size: int = 8  #: decodes have a multiple of so many rows
    prefill_batch_bucket_size: int = 4  #: prompts that are read at once
    pad_sequence_to_multiple_of: int = 128  #: tokens; 0 = every prompt to the longest
    enable_hpu_graph: bool = True  #: record steps, and repeat them without Python
    limit_hpu_graph: bool = False  #: record decodes only, which saves memory
    warmup_enabled: bool = True  #: compile every shape before the first request
    use_flash_attention: bool = False  #: fused attention, in families of optimum-habana that have it
    flash_attention_recompute: bool = False  #: its variant that takes less memory, for prompts
    attn_softmax_bf16: bool = False  #: softmax in bfloat16, in families of optimum-habana that have it
    lazy_mode: bool = True  #: PyTorch's operators are gathered into graphs; HPU graphs need it
    quant_config: Path | None = None  #: of Intel Neural Compressor, for float8


def _flag(value: str) -> bool:
    if value.lower() in TRUE:
        return True
    if value.lower() in FALSE:
        return False
    raise ValueError("it must be true or false")


def _count(least: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number = int(value) if value.lstrip("-").isdecimal() else least - 1
        if number < least:
            raise ValueError(f"it must be a whole number, at least {least}")
        return number

    return parse


def _file(value: str) -> Path | None:
    if value and not Path(value).is_file():
        raise ValueError("there is no such file")
    return Path(value) if value else None


#: variable -> (field, what reads its value)
VARIABLES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "BATCH_BUCKET_SIZE": ("batch_bucket_size", _count(1)),
    "PREFILL_BATCH_BUCKET_SIZE": ("prefill_batch_bucket_size", _count(1)),
    "PAD_SEQUENCE_TO_MULTIPLE_OF": ("pad_sequence_to_multiple_of", _count(0)),
    "ENABLE_HPU_GRAPH": ("enable_hpu_graph", _flag),
    "LIMIT_HPU_GRAPH": ("limit_hpu_graph", _flag),
    "WARMUP_ENABLED": ("warmup_enabled", _flag),
    "USE_FLASH_ATTENTION": ("use_flash_attention", _flag),
    "FLASH_ATTENTION_RECOMPUTE": ("flash_attention_recompute", _flag),
    "ATTN_SOFTMAX_BF16": ("attn_softmax_bf16", _flag),
    "PT_HPU_LAZY_MODE": ("lazy_mode", _flag),
    "QUANT_CONFIG": ("quant_config", _file),
}


def read_settings(environment: Mapping[str, str] = os.environ) -> GaudiSettings:
    """What the environment says.

    Raises:
        ConfigError: names the variable, its value, and what it may be.
    """
    found: dict[str, Any] = {}
    for name, (field, parse) in VARIABLES.items():
        if name not in environment:
            continue
        try:
            found[field] = parse(environment[name].strip())
        except ValueError as error:
            raise ConfigError(f"{name}={environment[name]!r}: {error}") from None
    settings = GaudiSettings(**found)
    if found.get("enable_hpu_graph") and not settings.lazy_mode:
        raise ConfigError("ENABLE_HPU_GRAPH: HPU graphs need lazy mode; leave PT_HPU_LAZY_MODE=0 out")
    if settings.flash_attention_recompute and not settings.use_flash_attention:
        raise ConfigError("FLASH_ATTENTION_RECOMPUTE is a variant of flash attention; set USE_FLASH_ATTENTION too")
    return settings
