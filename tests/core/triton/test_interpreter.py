"""What makes the interpreter faster changes nothing that a kernel or a test sees."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if torch.cuda.is_available():
    pytest.skip("kernels are compiled for the GPU that is here", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime import interpreter


@triton.jit
def _twice(x):
    return tl.sum(tl.where(x > 0, 2 * x, x), axis=0)


@triton.jit
def _sums(x, out, SIZE: tl.constexpr):
    row = tl.program_id(0)
    values = tl.load(x + row * SIZE + tl.arange(0, SIZE))
    tl.store(out + row, _twice(values) + tl.max(values, axis=0))


def launch(rows):
    x, out = torch.arange(-8 * rows, 8 * rows).view(rows, 16), torch.zeros(rows, dtype=torch.int64)
    _sums[(rows,)](x, out, SIZE=16)
    assert out.tolist() == [2 * row[row > 0].sum() + row[row <= 0].sum() + row.max() for row in x]


def test_language_is_replaced_once_for_each_set_of_modules_that_functions_see(faster_interpreter):
    before, count = tl.load, faster_interpreter.copy()
    launch(rows=50)
    assert tl.load is before
    found = faster_interpreter - count
    assert found.pop("_sums") == 1
    assert 1 <= found.total() <= 2  # not for each of 150 calls: Triton's own functions see other modules than ours


def test_overflow_is_not_computed_where_nobody_is_told(faster_interpreter):
    options = interpreter.interpreter_builder.options
    assert (options.sanitize_overflow, options.debug) == (False, False)


def test_types_of_numbers_pointers_and_blocks(faster_interpreter):
    pairs = {"float16": np.float16, "float32": np.float32, "int1": np.bool_, "int64": np.int64, "bfloat16": np.uint16}
    for _ in range(2):
        for name, dtype in pairs.items():
            kind = getattr(tl, name)
            assert interpreter._get_np_dtype(kind) == interpreter._get_np_dtype(tl.block_type(kind, [4])) == dtype
            pointer = tl.pointer_type(kind)
            assert interpreter._get_np_dtype(pointer) == interpreter._get_np_dtype(tl.block_type(pointer, [4]))
            assert interpreter._get_np_dtype(pointer) == np.uint64


def test_shapes_are_one_object_each_and_what_they_were(faster_interpreter):
    one, other = tl.block_type(tl.float32, [4, 16]), tl.block_type(tl.int8, [tl.constexpr(4), 16])
    assert one.shape is other.shape is tl.block_type(tl.int8, (4, 16)).shape
    assert [*one.shape] == [4, 16]
    assert [*tl.block_type(tl.float32, [16, 4]).shape] == [16, 4]
    assert (one.numel, other.numel, str(one), str(other)) == (64, 64, "<['4', '16'], fp32>", "<['4', '16'], int8>")
    assert one.with_element_ty(tl.int8) == other != one
    for kind in (one, other, one):
        found = tl.tensor(None, kind)
        assert (found.numel.value, found.dtype, found.type) == (64, kind.element_ty, kind)
        assert [size.value for size in found.shape] == [4, 16]
    assert len(tl.tensor(None, tl.float32).shape) == 0
    with pytest.raises(ValueError, match="power of 2"):
        tl.block_type(tl.float32, [24])
    with pytest.raises(TypeError, match="0d"):
        tl.block_type(tl.float32, [])


@triton.jit
def _outer(x, y, out, M: tl.constexpr, N: tl.constexpr):
    a, b = tl.load(x + tl.arange(0, M)), tl.load(y + tl.arange(0, N))
    product = a[:, None] * b
    tl.store(out + tl.arange(0, M)[:, None] * N + tl.arange(0, N), product + product + 1)


def test_blocks_of_other_shapes_are_broadcast(faster_interpreter):
    x, y, out = torch.randn(4), torch.randn(16), torch.zeros(4, 16)
    _outer[(1,)](x, y, out, M=4, N=16)
    assert torch.equal(out, 2 * x[:, None] * y + 1)


def test_what_is_wrong_in_a_kernel_is_raised(faster_interpreter):
    launch(rows=1)
    with pytest.raises(interpreter.InterpreterError):
        _sums[(1,)](torch.zeros(24), torch.zeros(1), SIZE=24)  # no power of two
    launch(rows=1)
