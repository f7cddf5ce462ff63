"""The compiled CPU kernels, called through their C interface.

The libraries are built when the package is (see hatch_build.py).  They use the OpenMP runtime that PyTorch has loaded.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

from tgi_core.cpu import processor


class Layer(Structure):
    """`Layer` of attention.cpp."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("alibi", c_void_p),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_size", c_int64),
        ("padded_size", c_int64),
        ("block_size", c_int64),
        ("window", c_int64),
        ("is_bf16", c_int64),
        ("scale", c_float),
        ("soft_cap", c_float),
    )


class Step(Structure):
    """`Step` of attention.cpp."""

    _fields_ = (
        ("tables", c_void_p),
        ("query_starts", c_void_p),
        ("context_lens", c_void_p),
        ("tile_sequence", c_void_p),
        ("tile_start", c_void_p),
        ("token_sequence", c_void_p),
        ("table_width", c_int64),
        ("tiles", c_int64),
        ("tokens", c_int64),
        ("tile_tokens", c_int64),
    )


_P, _N = c_void_p, c_int64
_SIGNATURES = {
    "tgi_rms_norm": (c_int, _P, _P, _P, _N, _N, c_float),
    "tgi_add_rms_norm": (c_int, _P, _P, _P, _P, _N, _N, c_float),
    "tgi_rotary": (c_int, _P, _N, _N, _N, _P, _P, _N, _N),
    "tgi_silu_and_mul": (c_int, _P, _P, _N, _N),
    "tgi_greedy": (c_int, _P, _N, _N, _P, _P),
    "tgi_paged_attention": (POINTER(Layer), POINTER(Step), _P, _N, _P, _N, _P, _N, _P),
}


def library_path() -> Path:
    """The library for this processor, whether it exists or not."""
    return Path(__file__).parent / f"kernels_{processor.variant()}.so"


def unavailable() -> str:
    """Why the compiled kernels cannot be used; "" if they can."""
    if not processor.variant():
        return "compiled for AVX2 at least, which this processor lacks"
    if not library_path().is_file():
        return "not compiled: no C++ compiler was found when tgi-core was installed"
    return ""


@cache
def library() -> ctypes.CDLL:
    """The loaded library.  Import torch first, so that both share one OpenMP runtime."""
    loaded = ctypes.CDLL(str(library_path()))
    for name, arguments in _SIGNATURES.items():
        getattr(loaded, name).argtypes = arguments
        getattr(loaded, name).restype = None
    return loaded
