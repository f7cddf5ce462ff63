"""The core's quantizations.  Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tgi_core.plugins.specs import QuantizationSpec

QUANTIZATIONS = (
    QuantizationSpec(name="int8", target="tgi_core.quantization.int8:Int8"),
    QuantizationSpec(name="int4", target="tgi_core.quantization.int4:Int4"),
    QuantizationSpec(name="gptq", target="tgi_core.quantization.gptq:Gptq", matches=f"{__name__}:is_gptq"),
    QuantizationSpec(name="awq", target="tgi_core.quantization.awq:Awq", matches=f"{__name__}:is_awq"),
)


def is_gptq(stored: Mapping[str, Any]) -> bool:
    """Whether weights are quantised so, by config.json's `quantization_config`."""
    return stored.get("quant_method") == "gptq"


def is_awq(stored: Mapping[str, Any]) -> bool:
    """The same of AWQ."""
    return stored.get("quant_method") == "awq"
