"""Triton's interpreter, made faster: it computes the same with less bookkeeping.

If Triton's insides are others, this, or what it runs, raises an error.
"""

import collections
import contextlib
import dataclasses

import numpy as np
import pytest
from triton.runtime import interpreter

#: words of a frame; for one of so many Python takes a piece of stack of 256 KiB, half of which is for calls from there
STACK = 1 << 14


@contextlib.contextmanager
def made_faster():
    """Gives how often a function had Triton's language replaced."""
    count = collections.Counter()
    with pytest.MonkeyPatch.context() as monkeypatch:
        replace_language_once(monkeypatch, count)
        describe_shapes_once(monkeypatch)
        compute_less(monkeypatch)
        yield count


def replace_language_once(monkeypatch, count):
    """Before it runs a kernel, the interpreter replaces what `triton.language` holds by its own.  It does so again for
    every call of a function, be it `tl.sum` or one of ours, and looks at hundreds of names that are replaced already.
    Functions that see the same modules of the language need it once in a launch, and compute the same.

    Where a piece of Python's stack ends just where a kernel is, each call from there maps memory and gives it back, as
    CPython keeps no piece that is empty, and half of the time is for that.  So a launch takes a large piece.
    """
    replace, launch, replaced = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def language_of(function):
        seen = function.__globals__.values()
        return tuple(any(value is module for value in seen) for module in (interpreter.tl, interpreter.tl.core))

    def replace_once(function):
        language = language_of(function)
        if language in replaced:
            return interpreter._LangPatchScope()  # there is nothing to restore
        replaced.add(language)
        count[function.__name__] += 1
        return replace(function)

    def launch_anew(*arguments, **constants):
        replaced.clear()
        return launch(*arguments, **constants)

    launch_anew.__code__ = launch_anew.__code__.replace(co_stacksize=STACK)
    monkeypatch.setattr(interpreter, "_patch_lang", replace_once)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_anew)


def describe_shapes_once(monkeypatch):
    """Every result has its shape checked, counted and made into constants one by one; there are few shapes.

    Equal ones are one object then, so that tensors of one shape are seen to need no broadcast.
    """
    language, semantic = interpreter.tl.core, interpreter.TritonSemantic
    make_type, make_tensor = language.block_type.__init__, language.tensor.__init__
    broadcast, shapes, scalar = semantic.broadcast_impl_value, {}, language.tuple(())

    def type_once(self, element_ty, shape):
        key = tuple(size.value if isinstance(size, language.constexpr) else size for size in shape)
        if key not in shapes:
            make_type(self, element_ty, shape)
            shapes[key] = self.shape, self.numel, str(self.shape)
        self.shape, self.numel, shape = shapes[key]
        self.element_ty, self.name = element_ty, f"<{shape}, {element_ty}>"

    def tensor_once(self, handle, type):
        described = type.shape if type.is_block() else scalar
        if not hasattr(described, "constants"):
            make_tensor(self, handle, type)
            described.constants = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = described.constants

    def broadcast_unlike(self, one, other):
        if one.type.is_block() and other.type.is_block() and one.type.shape is other.type.shape:
            return one, other
        return broadcast(self, one, other)

    monkeypatch.setattr(language.block_type, "__init__", type_once)
    monkeypatch.setattr(language.tensor, "__init__", tensor_once)
    monkeypatch.setattr(semantic, "broadcast_impl_value", broadcast_unlike)


def compute_less(monkeypatch):
    """The interpreter computes every sum and product of integers a second time, in 64 bits, to see whether they
    overflow, and then does not look at what it saw unless it debugs; it makes a table of all of NumPy's types whenever
    it asks for one.

    In float32 a row of NumPy's products depends on where it stands, on some processors; here they are rounded once.
    """
    builder, find_dtype, dtypes = interpreter.interpreter_builder, interpreter._get_np_dtype, {}
    multiply = builder.create_dot

    def multiply_widely(a, b, total, *rest):
        if not a.data.dtype == b.data.dtype == total.data.dtype == np.float32:
            return multiply(a, b, total, *rest)
        product = np.matmul(a.data, b.data, dtype=np.float64) + total.data
        return interpreter.TensorHandle(product.astype(np.float32), total.dtype.scalar)

    def numpy_dtype(kind):
        if kind.scalar.name not in dtypes:
            dtypes[kind.scalar.name] = find_dtype(kind.scalar)
        return dtypes[kind.scalar.name]

    monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
    monkeypatch.setattr(builder, "create_dot", multiply_widely)
    monkeypatch.setattr(interpreter, "_get_np_dtype", numpy_dtype)
