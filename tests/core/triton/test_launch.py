"""Launches of kernels, of a function that only tells what it was asked for."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels import compiling
from tgi_core.triton import launch


class Compiled:
    """Which says when it is loaded."""

    def __init__(self, loaded, size):
        self.loaded, self.size = loaded, size

    def __getitem__(self, grid):
        self.loaded.append(self.size)


class Function:
    """Like a kernel of Triton's that is compiled for a GPU."""

    __name__, arg_names = "function", ("x", "SIZE", "OVERLAP")

    def __init__(self):
        self.compiled, self.seen, self.loaded, self.launched, self.devices = [], [], [], [], []
        self.error = None

    def warmup(self, *arguments, grid, **constants):
        self.compiled.append((grid, constants["SIZE"]))
        self.seen += arguments
        if self.error:
            raise self.error
        return Compiled(self.loaded, constants["SIZE"])

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
    devices = SimpleNamespace(
        get_current_device=lambda: 3,
        set_current_device=function.devices.append,
        get_current_target=lambda: SimpleNamespace(backend="hip"),
    )
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=devices))
    launch._kind_on_device.cache_clear()
    yield launch.Kernel(function)
    launch._kind_on_device.cache_clear()


def start(kernel, size):
    kernel.launch((size, 1, 1), (torch.zeros(4),), {"SIZE": size})


def start_ahead(kernel, *sizes):
    """Until all are compiled, which need not be launched."""
    with compiling.ahead() as missing:
        for size in sizes:
            start(kernel, size)
    for job in missing.jobs:
        job.exception(60)


def test_a_kernel_is_launched_at_once_where_nobody_was_ahead(kernel):
    start(kernel, 3)
    assert kernel.function.launched == [((3, 1, 1), 3)]
    assert not kernel.function.compiled


def test_ahead_each_variant_is_compiled_and_loaded_and_not_launched(kernel):
    start_ahead(kernel, 3, 5, 3)
    assert sorted(kernel.function.compiled) == [((3, 1, 1), 3), ((5, 1, 1), 5)]
    assert sorted(kernel.function.loaded) == [3, 5]
    assert kernel.function.devices == [3, 3]  # that of the thread which launches
    assert not kernel.function.launched
    for size in (3, 5, 3):
        start(kernel, size)
    assert [size for _, size in kernel.function.launched] == [3, 5, 3]
    start_ahead(kernel, 3)
    assert len(kernel.function.launched) == 3


@pytest.mark.parametrize(("first", "is_aligned"), [(0, True), (2, False), (8, True)])
def test_no_memory_is_kept_while_a_kernel_waits_for_its_compiler(kernel, first, is_aligned):
    x = torch.zeros(1 << 10, dtype=torch.bfloat16)[first:]
    assert x.data_ptr() % launch.ALIGNMENT == 2 * first % launch.ALIGNMENT
    with compiling.ahead() as missing:
        kernel.launch((1, 1, 1), (x,), {"SIZE": 1})
    missing.jobs[0].exception(60)
    (seen,) = kernel.function.seen
    assert seen.dtype == x.dtype
    assert (seen.data_ptr() % launch.ALIGNMENT == 0) == is_aligned
    assert seen.untyped_storage().nbytes() < x.untyped_storage().nbytes()


def test_where_offsets_of_32_bits_do_not_reach_a_kernel_is_another(kernel, monkeypatch):
    x = torch.zeros(4)
    kernel.launch((1, 1, 1), (x,), {"SIZE": 1})
    monkeypatch.setattr(launch, "NEAR_BYTES", x.untyped_storage().nbytes() - 1)
    with compiling.ahead() as missing:
        kernel.launch((1, 1, 1), (x,), {"SIZE": 1})
    missing.jobs[0].exception(60)
    assert kernel.function.seen[0] is x


def test_what_the_compiler_says_is_told_by_the_launch(kernel):
    kernel.function.error = ValueError("too many registers")
    start_ahead(kernel, 3)
    with pytest.raises(ValueError, match="too many registers"):
        start(kernel, 3)


def test_indices_are_in_range_where_their_kernel_is_left_out():
    with compiling.ahead():
        assert not launch.indices(3, 2, device=torch.device("cpu")).any()
    assert launch.indices(3, 2, device=torch.device("cpu")).shape == (3, 2)
