"""Which formats of 8 bits a GPU converts.  Imports no torch."""

from __future__ import annotations

from tgi_core.device.capabilities import FLOAT8

E4M3, E5M2 = FLOAT8
#: format of keys and values -> (compute capability from which Triton has it, what to use before)
FIRST = {
    E5M2: ((8, 0), "leave it out: keys and values stay in the model's dtype"),
    E4M3: ((8, 9), f"use {E5M2}, which is there from 8.0 on, or leave it out"),
}


def refused_kv_dtypes(capability: tuple[int, int]) -> dict[str, str]:
    """Formats of keys and values that a GPU has not -> why not, and what to do instead."""
    found = ".".join(map(str, capability))
    return {
        name: f"needs compute capability {'.'.join(map(str, first))}, this GPU has {found}; {instead}"
        for name, (first, instead) in FIRST.items()
        if capability < first
    }
