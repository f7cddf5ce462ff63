"""Finding the compiled kernels."""

import pytest

from tgi_core.cpu import kernels, native, processor
from tgi_core.kernels.ops import KernelQuery


@pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable() or "native kernels are there")
def test_libraries_of_other_sources_are_not_used(monkeypatch):
    native._load.cache_clear()
    monkeypatch.setitem(native._SIGNATURES, "tgi_kernel_of_tomorrow", (None,))
    query = KernelQuery(device="cpu", dtype="float32", head_size=64, block_size=32)
    assert kernels.supports(query) == "compiled from other sources than these: install tgi-core again"


@pytest.mark.parametrize(("content", "reason"), [(b"not a library", "compiled for another system"), (None, "no C++")])
def test_libraries_that_cannot_be_loaded_are_not_used(tmp_path, monkeypatch, content, reason):
    native._load.cache_clear()
    monkeypatch.setattr(native, "_path", lambda variant: tmp_path / f"{variant}.so")
    for variant in processor.variants() if content else ():
        native._path(variant).write_bytes(content)
    assert reason in native.unavailable()
    assert native.variant() == ""
