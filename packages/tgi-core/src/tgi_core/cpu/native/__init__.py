"""The compiled CPU kernels, called through their C interface.

The libraries are built when the package is (see hatch_build.py), one for each kind of processor.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from contextvars import ContextVar
from ctypes import POINTER, Structure, Union, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from tgi_core.cpu import processor, topology
from tgi_core.errors import UnsupportedKernel


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
        ("block_stride", c_int64),
        ("window", c_int64),
        ("causal", c_int64),
        ("is_bf16", c_int64),
        ("scale", c_float),
        ("soft_cap", c_float),
    )


class Step(Structure):
    """`Step` of attention.cpp."""

    _fields_ = (
        ("tables", c_void_p),
        ("query_starts", c_void_p),
        ("key_starts", c_void_p),
        ("context_lens", c_void_p),
        ("tile_sequence", c_void_p),
        ("tile_start", c_void_p),
        ("token_sequence", c_void_p),
        ("table_width", c_int64),
        ("tiles", c_int64),
        ("tokens", c_int64),
        ("tile_tokens", c_int64),
    )


class Expert(Structure):
    """`Expert` of moe.cpp."""

    _fields_ = (
        ("gate_up", c_void_p),
        ("gate_up_scales", c_void_p),
        ("down", c_void_p),
        ("down_scales", c_void_p),
    )


class Slot(Union):
    """`Slot` of replay.cpp."""

    _fields_ = (("whole", c_int64), ("real", c_double), ("pointer", c_void_p))


class Call(Structure):
    """`Call` of replay.cpp."""

    _fields_ = (("kernel", c_void_p), ("slots", Slot * 13))


_P, _N = c_void_p, c_int64
#: result, then arguments
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "tgi_start_threads": (None, c_int),
    "tgi_rms_norm": (None, c_int, _P, _P, _P, _N, _N, c_float),
    "tgi_add_rms_norm": (None, c_int, _P, _P, _P, _P, _N, _N, c_float),
    "tgi_rotary": (None, c_int, _P, _N, _N, _N, _P, _P, _N, _N),
    "tgi_layer_norm": (None, c_int, _P, _P, _P, _P, _P, _N, _N, c_float),
    "tgi_activate": (None, c_int, c_int, c_int, _P, _P, _N, _N),
    "tgi_greedy": (None, c_int, _P, _N, _N, _P, _P),
    "tgi_sample": (None, _P, _N, _N, _P, _P, _P, _P),
    "tgi_penalize": (None, _P, _N, _N, _P, _P, _P, _P, _P, _P),
    "tgi_top_k": (None, _P, _N, _N, _P),
    "tgi_top_p": (None, _P, _N, _N, _P),
    "tgi_packed_size": (_N, _N, _N),
    "tgi_pack": (None, c_int, _P, _P, _N, _N),
    "tgi_linear": (None, c_int, _P, _N, _P, _P, _P, _N, _N, _N),
    "tgi_rows": (None, c_int, _P, _P, _P, _N, _N),
    "tgi_rows_int8": (None, c_int, _P, _P, _P, _P, _N, _N),
    "tgi_packed_size_int8": (_N, _N, _N),
    "tgi_pack_int8": (None, _P, _P, _N, _N),
    "tgi_linear_int8": (None, c_int, _P, _N, _P, _P, _P, _P, _N, _N, _N),
    "tgi_packed_size_int4": (_N, _N, _N),
    "tgi_pack_int4": (None, c_int, _P, _P, _P, _P, _N, _N),
    "tgi_linear_int4": (None, c_int, _P, _N, _P, _P, _P, _P, _N, _N, _N),
    "tgi_paged_attention": (None, POINTER(Layer), POINTER(Step), _P, _N, _N, _P, _N, _P, _N, _P, _N, _P),
    "tgi_experts": (None, c_int, c_int, c_int, _P, _N, _P, _N, _N, _N, _P, _P, _N, _P),
    "tgi_kernel": (_P, c_char_p),
    "tgi_replay": (None, POINTER(Call), _N),
}

#: what `library` returns instead, while calls are written down
recorder: ContextVar[Any] = ContextVar("recorder", default=None)


def unavailable() -> str:
    """Why the compiled kernels cannot be used; "" if they can."""
    if not processor.variants():
        return "compiled for AVX2 at least, which this processor lacks"
    if not any(_path(variant).is_file() for variant in processor.variants()):
        return "not compiled: no C++ compiler was found when tgi-core was installed"
    compiled = [loaded for _, loaded in _compiled()]
    if not compiled:
        return "compiled for another system: install tgi-core from its source, with a C++ compiler"
    if _load():
        return ""
    if any(map(_is_stale, compiled)):
        return "compiled from other sources than these: install tgi-core again"
    return "this system does not let programs use the processor's matrix registers"


def variant() -> str:
    """The kind of processor that the kernels in use are compiled for; "" where none are."""
    loaded = _load()
    return loaded[0] if loaded else ""


def library() -> Any:
    """The best library for this processor, with a thread per usable core."""
    return recorder.get() or _started()


@cache
def _started() -> ctypes.CDLL:
    loaded = _load()
    if loaded is None:
        raise UnsupportedKernel(f"no compiled CPU kernels: {unavailable()}")
    loaded[1].tgi_start_threads(topology.threads())
    return loaded[1]


def _compiled() -> Iterator[tuple[str, ctypes.CDLL]]:
    """(variant, library) for this processor, best first."""
    for variant in processor.variants():
        with contextlib.suppress(OSError):  # not there, or it needs what this system lacks
            yield variant, ctypes.CDLL(str(_path(variant)))


def _path(variant: str) -> Path:
    return Path(__file__).parent / f"kernels_{variant}.so"


def _is_stale(loaded: ctypes.CDLL) -> bool:
    """Whether a library lacks kernels, as one does that was compiled before the sources changed."""
    return not all(hasattr(loaded, name) for name in _SIGNATURES)


@cache
def _load() -> tuple[str, ctypes.CDLL] | None:
    """The first variant that is compiled and runs here."""
    for variant, loaded in _compiled():
        if not _is_stale(loaded) and loaded.tgi_usable():
            for name, (result, *arguments) in _SIGNATURES.items():
                getattr(loaded, name).restype, getattr(loaded, name).argtypes = result, arguments
            return variant, loaded
    return None
