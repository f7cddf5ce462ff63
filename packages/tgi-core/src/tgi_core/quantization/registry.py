"""The core's quantizations.  Imports no torch."""

from __future__ import annotations

from tgi_core.plugins.specs import QuantizationSpec

QUANTIZATIONS = (
    QuantizationSpec(name="int8", target="tgi_core.quantization.int8:Int8"),
    QuantizationSpec(name="int4", target="tgi_core.quantization.int4:Int4"),
)
