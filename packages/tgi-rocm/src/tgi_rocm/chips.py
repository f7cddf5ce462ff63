"""The GPUs that kernels are compiled for here, and what of a checkpoint each cannot serve.  Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from tgi_core.device.capabilities import FLOAT8 as FLOAT8_FORMATS

AWQ = "AMD GPUs have no kernels for it; use the original checkpoint, with --quantize int4 where memory is short"
FLOAT8 = "the MI200 series has no float8; use the checkpoint in bfloat16, or a GPU of the MI300 series"

#: gfx name -> quantizations that are refused, by their names in checkpoints
REFUSED_QUANTIZATIONS: Mapping[str, Mapping[str, str]] = {
    "gfx90a": {"awq": AWQ, **dict.fromkeys(("fp8", "fbgemm_fp8"), FLOAT8)},
    "gfx942": {"awq": AWQ},
}

NO_FLOAT8 = "the MI200 series has no float8; leave it out: keys and values stay in the model's dtype"

#: gfx name -> formats of keys and values that are refused.  The MI300 series converts these, OCP's, in several
#: instructions; its own are other formats (FNUZ), which no checkpoint and no other device has
REFUSED_KV_DTYPES: Mapping[str, Mapping[str, str]] = {"gfx90a": dict.fromkeys(FLOAT8_FORMATS, NO_FLOAT8), "gfx942": {}}


def why_not(gfx: str) -> str:
    """Why a GPU cannot be used; "" if it can."""
    if gfx in REFUSED_QUANTIZATIONS:
        return ""
    return f"tgi-rocm is made for {' and '.join(REFUSED_QUANTIZATIONS)}, not for {gfx}"
