"""What the host's processor is and can do.  Imports no torch."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_AVX512_BF16 = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd", "avx512_bf16", "avx512_vnni"}
_X86_64 = {
    "amx": {*_AVX512_BF16, "amx_tile", "amx_bf16", "amx_int8"},
    "avx512bf16": _AVX512_BF16,
    "avx2": {"avx2", "fma", "bmi2", "f16c"},
}


@cache
def product() -> str:
    """The processor's own name, its architecture's where it has none."""
    return _field("model name") or platform.processor() or platform.machine() or "CPU"


@cache
def flags() -> frozenset[str]:
    """Instruction set extensions as Linux names them; empty elsewhere."""
    return frozenset((_field("flags") or _field("Features")).split())


def has_fast_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are faster than in float32."""
    return bool(flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def variants() -> tuple[str, ...]:
    """Which compiled kernels the processor runs, best first."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("generic",)
    return tuple(name for name, needed in _X86_64.items() if needed <= flags())


def available_bytes() -> int:
    """Memory that can be taken without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


@cache
def _field(name: str) -> str:
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
