"""Writes down what a step does, so that it can be repeated without most of Python.

Neighbouring calls of compiled kernels are repeated by one call of C++ (see native/replay.cpp); what PyTorch does
between them is called again, with its results copied to where they were.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tgi_core.cpu.arena import Arena
from tgi_core.cpu.native import Call, Slot, library, recorder
from tgi_core.device.backend import UnrecordableStep

_UNINITIALIZED = {
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
}
_DEPENDS_ON_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def record(run: Callable[[], None], memory: list[Tensor]) -> Callable[[], None]:
    """Run once, and return what repeats it on the same memory.

    Args:
        memory: for what the step computes; see `Arena`.

    Raises:
        UnrecordableStep: what Python does next depends on what was computed.
    """
    recording = _Recording(library(), memory)
    token = recorder.set(_NativeRecorder(library(), recording))
    try:
        with recording:
            run()
    finally:
        recorder.reset(token)
    return recording.finish()


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of PyTorch, and is told of every call of a compiled kernel."""

    def __init__(self, compiled: ctypes.CDLL, memory: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._compiled, self._arena = compiled, Arena(memory)
        self._actions: list[Callable[[], object]] = []
        self._calls: list[Call] = []
        self._kept: list[object] = [memory]  # what calls point into and nobody else may keep

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and telling PyTorch's compiler so would import it, which takes a second."""
        return False

    def add_call(self, call: Call, *kept: object) -> None:
        """A call of a compiled kernel."""
        self._calls.append(call)
        self._kept.extend(kept)

    def finish(self) -> Callable[[], None]:
        """What repeats everything."""
        self._end_calls()
        return partial(_repeat, tuple(self._actions), self._kept)

    def _end_calls(self) -> None:
        if self._calls:
            calls = (Call * len(self._calls))(*self._calls)
            self._actions.append(partial(self._compiled.tgi_replay, calls, len(calls)))
            self._calls = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _DEPENDS_ON_DATA & set(func.tags):
            raise UnrecordableStep(f"{func} waits for what was computed")
        if func.namespace == "c10d":
            raise UnrecordableStep(f"{func} waits for other ranks")
        result = func(*args, **kwargs)
        if func.overloadpacket in _UNINITIALIZED:
            return self._placed(result)
        if func._schema.is_mutable:
            self._add_operation(partial(func, *self._aliases(args), **self._aliases(kwargs)))
            return result
        if _storages(result) & _storages((args, kwargs)):  # a view
            self._kept.extend(leaf for leaf in tree_leaves(result) if self._arena.alias(leaf) is leaf)
            return result
        placed = tree_map_only(Tensor, lambda computed: self._placed(computed).copy_(computed), result)
        outputs = [leaf for leaf in tree_leaves(self._aliases(placed)) if isinstance(leaf, Tensor)]
        self._add_operation(partial(_compute, outputs, partial(func, *self._aliases(args), **self._aliases(kwargs))))
        return placed

    def _add_operation(self, operation: Callable[[], object]) -> None:
        self._end_calls()
        self._actions.append(operation)

    def _placed(self, tensor: Tensor) -> Tensor:
        return self._arena.empty(tensor.shape, tensor.stride(), tensor.dtype)

    def _aliases(self, tree: Any) -> Any:
        return tree_map_only(Tensor, self._arena.alias, tree)


class _NativeRecorder:
    """Stands for the compiled library while its calls are written down."""

    def __init__(self, compiled: ctypes.CDLL, recording: _Recording) -> None:
        self._compiled, self._recording = compiled, recording

    def __getattr__(self, name: str) -> Callable[..., None]:
        address = self._compiled.tgi_kernel(name.encode())
        if address is None:
            raise UnrecordableStep(f"{name} cannot be repeated")
        run = getattr(self._compiled, name)

        def call(*args: Any) -> None:
            run(*args)
            self._recording.add_call(Call(address, tuple(map(_slot, args))), args)

        return call


def _slot(argument: Any) -> Slot:
    if isinstance(argument, float):
        return Slot(real=argument)
    if isinstance(argument, int) or argument is None:
        return Slot(whole=argument or 0)
    return Slot(pointer=ctypes.addressof(argument._obj))  # of `byref`


def _compute(outputs: list[Tensor], operation: Callable[[], Any]) -> None:
    for output, computed in zip(outputs, tree_leaves(operation()), strict=True):
        output.copy_(computed)


def _repeat(actions: tuple[Callable[[], object], ...], kept: object) -> None:
    for action in actions:
        action()


def _storages(tree: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
