"""Every compiled variant that this processor runs is tested, on more than one thread."""

import pytest

from tgi_core.cpu import native, processor


@pytest.fixture(autouse=True, params=processor.variants() or ("none",))
def variant(request, monkeypatch):
    """Makes the kernels those of one variant."""
    for cached in (native._load, native._started):
        cached.cache_clear()
    monkeypatch.setattr(processor, "variants", lambda: (request.param,))
    if not native.unavailable():
        assert native.variant() == request.param
        native.library().tgi_start_threads(3)
    yield request.param
    for cached in (native._load, native._started):
        cached.cache_clear()
