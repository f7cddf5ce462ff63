"""Calls kernels without Triton's own look at every argument, which costs more than a small kernel takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeAlias

import torch
import triton
from torch import Tensor
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from tgi_core.kernels.compiling import Compilations, is_ahead, leaves_out
from tgi_core.triton.overlap import overlaps

log = logging.getLogger(__name__)

LONG_S = 0.1  #: of a launch, from which on it is told
NEAR_BYTES = (1 << 31) - 1
ALIGNMENT = 16  #: bytes; kernels are compiled anew for pointers that are less aligned

Argument: TypeAlias = Tensor | TensorDescriptor | float | None


def in_tiles(x: Tensor, *tile: int) -> TensorDescriptor:
    """x as a kernel takes it that copies tiles; beyond its end there are zeros, and nothing is written."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(tile))


def is_in_tiles(x: Tensor) -> bool:
    """Whether x lies in memory as copies of tiles want it."""
    *strides, last = x.stride()
    places = (x.data_ptr(), *(stride * x.itemsize for stride in strides))
    return last == 1 and not any(place % ALIGNMENT for place in places)


def indices(*shape: int, device: torch.device) -> Tensor:
    """Memory for int64 that a kernel writes and others look something up by: in range, too, where it is left out."""
    make = torch.zeros if is_ahead() else torch.empty
    return make(shape, dtype=torch.int64, device=device)


def _kind(x: Argument) -> object:
    """What a kernel is compiled anew for."""
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() % ALIGNMENT == 0
    return (x.base.dtype, *x.block_shape) if isinstance(x, TensorDescriptor) else x is None


def _kind_and_range(x: Argument) -> object:
    """The same on AMD's chips, where it matters whether offsets of 32 bits reach all of a tensor."""
    return _kind(x), isinstance(x, Tensor) and _is_near(x)


def _is_near(x: Tensor) -> bool:
    return x.untyped_storage().nbytes() <= NEAR_BYTES


@cache
def _kind_on_device() -> Callable[[Argument], object]:
    return _kind_and_range if driver.active.get_current_target().backend == "hip" else _kind


def _stand_in(x: Argument) -> Argument:
    """What a kernel is compiled for as for x, and keeps no memory; caches, which stay anyway, stand for themselves."""
    if isinstance(x, Tensor):
        return _tiny(x.dtype, x.data_ptr() % ALIGNMENT, x.device) if _is_near(x) else x
    if isinstance(x, TensorDescriptor):
        return TensorDescriptor(_tiny(x.base.dtype, 0, x.base.device), x.shape, x.strides, x.block_shape)
    return x


@cache
def _tiny(dtype: torch.dtype, offset: int, device: torch.device) -> Tensor:
    return torch.empty(2 * ALIGNMENT, dtype=torch.uint8, device=device)[offset : offset + ALIGNMENT].view(dtype)


def _compile_and_load(device: int, compile: Callable[[], Any]) -> None:
    """Triton compiles for the device of the thread, which is the first one at first, and finds kernels by it; up to 3.6
    it also compiles what launches a kernel, when that is loaded."""
    driver.active.set_current_device(device)
    compile()[1, 1, 1]


class Kernel:
    """A compiled variant for every set of constants, dtypes and alignments that was met.

    Args:
        function: whose parameters are pointers, tensors in tiles, floats and integers, which Triton is told not to
            specialize on, then constants: all that Triton would look at is a key here.  The last one is OVERLAP, see
            `overlap`.
        contracts: a product and a sum may be rounded once, together, as the compiler likes.
    """

    def __init__(self, function: Any, *, contracts: bool = True) -> None:
        self.function, self._options = function, {"enable_fp_fusion": contracts}
        self.interpreted = not isinstance(function, triton.JITFunction)
        self._names: list[str] = list(function.arg_names)
        self._variants: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
        self._compilations = Compilations()

    def launch(
        self,
        grid: tuple[int, int, int],
        arguments: tuple[Argument, ...],
        constants: Mapping[str, Any],
        warps: int = 4,
        stages: int = 3,
    ) -> None:
        """Start `grid` programs on the current stream; left out where `compiling.ahead` says so.

        Args:
            arguments: the first of the function's, in its order.
            constants: the rest, by name; always in the same order.
        """
        if self.interpreted:
            if not leaves_out():
                self.function[grid](*arguments, **constants, OVERLAP=False)
            return
        key = (*map(_kind_on_device(), arguments), *constants.values(), warps, stages)
        found = self._variants.get(key)
        if found is None:
            constants = {**constants, "OVERLAP": overlaps()}
            options = {"num_warps": warps, "num_stages": stages, **self._options}
            if overlaps():
                options["launch_pdl"] = True
            given = {**constants, **options}
            compile = partial(self.function.warmup, *map(_stand_in, arguments), grid=grid, **given)
            device, started = driver.active.get_current_device(), time.perf_counter()
            if not self._compilations.may_launch(key, partial(_compile_and_load, device, compile)):
                return
            compiled = self.function[grid](*arguments, **given)
            if (waited_s := time.perf_counter() - started) > LONG_S:
                log.info("waited %.1f s for %s to be compiled", waited_s, self.function.__name__)
            rest = tuple(constants[name] for name in self._names[len(arguments) :])
            self._variants[key] = compiled, rest
            return
        if not leaves_out():
            compiled, rest = found
            compiled[grid](*arguments, *rest)
