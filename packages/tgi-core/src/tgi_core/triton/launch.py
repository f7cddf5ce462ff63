"""Calls kernels without Triton's own look at every argument, which costs more than a small kernel takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
from torch import Tensor

from tgi_core.triton.overlap import overlaps

ALIGNMENT = 16  #: bytes; kernels are compiled anew for pointers that are less aligned


class Kernel:
    """A compiled variant for every set of constants, dtypes and alignments that was met.

    Args:
        function: whose parameters are pointers, floats and integers, which Triton is told not to specialize on, then
            constants: all that Triton would look at is a key here.  The last one is OVERLAP, for `follow`.
        contracts: a product and a sum may be rounded once, together, as the compiler likes.
    """

    def __init__(self, function: Any, *, contracts: bool = True) -> None:
        self.function, self._options = function, {} if contracts else {"enable_fp_fusion": False}
        self.interpreted = not isinstance(function, triton.JITFunction)
        self._names: list[str] = list(function.arg_names)
        self._variants: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def launch(
        self,
        grid: tuple[int, int, int],
        arguments: tuple[Tensor | float | None, ...],
        constants: Mapping[str, Any],
        warps: int = 4,
        stages: int = 3,
    ) -> None:
        """Start `grid` programs on the current stream.

        Args:
            arguments: the first of the function's, in its order.
            constants: the rest, by name.
        """
        if self.interpreted:
            self.function[grid](*arguments, **constants, OVERLAP=False)
            return
        kinds = [(x.dtype, x.data_ptr() % ALIGNMENT) if isinstance(x, Tensor) else x is None for x in arguments]
        key = (*kinds, *constants.values(), warps, stages)
        found = self._variants.get(key)
        if found is None:
            constants = {**constants, "OVERLAP": overlaps()}
            options = {"num_warps": warps, "num_stages": stages, **self._options}
            if overlaps():
                options["launch_pdl"] = True
            compiled = self.function[grid](*arguments, **constants, **options)
            rest = tuple(constants[name] for name in self._names[len(arguments) :])
            self._variants[key] = compiled, rest
            return
        compiled, rest = found
        compiled[grid](*arguments, *rest)
