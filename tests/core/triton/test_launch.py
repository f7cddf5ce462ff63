"""Launches of kernels, of a function that only tells what it was asked for."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels import compiling
from tgi_core.triton import launch


class Function:
    """Like a kernel of Triton's that is compiled for a GPU."""

    arg_names = ("x", "SIZE", "OVERLAP")

    def __init__(self):
        self.compiled, self.launched, self.devices, self.error = [], [], [], None

    def warmup(self, *arguments, grid, **constants):
        self.compiled.append((grid, constants["SIZE"]))
        if self.error:
            raise self.error

    def __getitem__(self, grid):
        def run(x, SIZE, OVERLAP, **options):
            if self.error:
                raise self.error
            self.launched.append((grid, SIZE))
            return self

        return run


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launch, "overlaps", lambda: False)
    monkeypatch.setattr(launch.triton, "JITFunction", Function)
    function = Function()
    devices = SimpleNamespace(get_current_device=lambda: 3, set_current_device=function.devices.append)
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=devices))
    return launch.Kernel(function)


def start(kernel, size):
    kernel.launch((size, 1, 1), (torch.zeros(4),), {"SIZE": size})


def start_beside(kernel, size):
    """Again and again, until it is not still being compiled."""
    with compiling.beside():
        while True:
            with suppress(compiling.StillCompiling):
                return start(kernel, size)


def test_a_kernel_is_launched_at_once_where_nobody_minds(kernel):
    start(kernel, 3)
    assert kernel.function.launched == [((3, 1, 1), 3)]
    assert not kernel.function.compiled


def test_beside_others_each_variant_is_compiled_before_it_is_launched(kernel):
    for size in (3, 5, 3, 5):
        start_beside(kernel, size)
    assert kernel.function.compiled == [((3, 1, 1), 3), ((5, 1, 1), 5)]
    assert [size for _, size in kernel.function.launched] == [3, 5, 3, 5]
    assert kernel.function.devices == [3, 3]  # that of the thread which launches


def test_what_the_compiler_says_is_told_by_the_launch(kernel):
    kernel.function.error = ValueError("too many registers")
    with pytest.raises(ValueError, match="too many registers"):
        start_beside(kernel, 3)
