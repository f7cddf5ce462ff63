"""Finding the compiled kernels."""

import pytest

from tgi_core.cpu import kernels, native
from tgi_core.kernels.ops import KernelQuery


@pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable() or "native kernels are there")
def test_libraries_of_other_sources_are_not_used(monkeypatch):
    native._load.cache_clear()
    monkeypatch.setitem(native._SIGNATURES, "tgi_kernel_of_tomorrow", (None,))
    query = KernelQuery(device="cpu", dtype="float32", head_size=64, block_size=32)
    assert kernels.supports(query) == "compiled from other sources than these: install tgi-core again"
