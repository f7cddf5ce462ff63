"""Matrix products with weights in a blocked layout: one copy, read once per step."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tgi_core.cpu.kernels import is_bf16
from tgi_core.cpu.memory import weights
from tgi_core.cpu.native import library
from tgi_core.kernels.ops import KernelQuery
from tgi_core.kernels.reference.linear import quantize_rows


class Packed(NamedTuple):
    """A weight in the layout of native/linear.cpp, or with scales in that of native/int8.cpp or int4.cpp."""

    outputs: int
    inputs: int
    data: Tensor
    scales: Tensor | None = None

    @property
    def addresses(self) -> tuple[int, ...]:
        """What kernels take: that of the data, and of scales where there are some."""
        return tuple(part.data_ptr() for part in (self.data, self.scales) if part is not None)


class _Native:
    """A product in C++ of x with a packed weight."""

    kernel: ClassVar[str]

    def __call__(self, x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
        outputs, inputs, _, _ = packed
        if x.stride(1) != 1:
            x = x.contiguous()
        out = x.new_empty(x.shape[0], outputs)
        getattr(library(), self.kernel)(
            is_bf16(x),
            x.data_ptr(),
            x.stride(0),
            *packed.addresses,
            bias.data_ptr() if bias is not None else None,
            out.data_ptr(),
            x.shape[0],
            outputs,
            inputs,
        )
        return out


class _NativeRows(_Native):
    """It also finds rows in what it packed."""

    rows_kernel: ClassVar[str]

    def rows(self, packed: Packed, ids: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty(len(ids), packed.inputs, dtype=dtype)
        find = getattr(library(), self.rows_kernel)
        find(is_bf16(out), *packed.addresses, ids.data_ptr(), out.data_ptr(), len(ids), packed.inputs)
        return out


class NativeLinear(_NativeRows):
    """For one row or thousands: bfloat16 on AMX or AVX512-BF16, float32 on plain vectors."""

    kernel, rows_kernel = "tgi_linear", "tgi_rows"

    def pack(self, weight: Tensor) -> Packed:
        weight = weight.contiguous()
        outputs, inputs = weight.shape
        data = weights.empty(library().tgi_packed_size(outputs, inputs), weight.dtype)
        library().tgi_pack(is_bf16(weight), weight.data_ptr(), data.data_ptr(), outputs, inputs)
        return Packed(outputs, inputs, data)


class NativeInt8Linear(_NativeRows):
    """Products of int8 with x as two int8 digits, which round it less than bfloat16 does."""

    kernel, rows_kernel = "tgi_linear_int8", "tgi_rows_int8"

    def pack(self, weight: Tensor) -> Packed:
        rounded, scales = quantize_rows(weight)
        outputs, inputs = weight.shape
        data = weights.empty(library().tgi_packed_size_int8(outputs, inputs), torch.uint8)
        library().tgi_pack_int8(rounded.data_ptr(), data.data_ptr(), outputs, inputs)
        return Packed(outputs, inputs, data, scales)


class NativeInt4Linear(_Native):
    """As int8, of what int4 is unpacked to on its way: the memory read is an eighth of float32's and a bit."""

    kernel = "tgi_linear_int4"

    def pack(self, weight: Tensor, importance: Tensor | None = None) -> Packed:
        weight = weight.contiguous()
        outputs, inputs = weight.shape
        data = weights.empty(library().tgi_packed_size_int4(outputs, inputs), torch.uint8)
        scales = torch.empty(outputs)
        library().tgi_pack_int4(
            is_bf16(weight),
            weight.data_ptr(),
            importance.data_ptr() if importance is not None else None,
            data.data_ptr(),
            scales.data_ptr(),
            outputs,
            inputs,
        )
        return Packed(outputs, inputs, data, scales)


native_linear = NativeLinear()
native_linear_int8 = NativeInt8Linear()
native_linear_int4 = NativeInt4Linear()


def onednn_supports(query: KernelQuery) -> str:
    """Why oneDNN's packed weights cannot serve this model."""
    if query.dtype != "bfloat16":
        return f"packs bfloat16 only, not {query.dtype}"
    if not torch._C._has_mkldnn:
        return "this PyTorch is built without oneDNN"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 on this processor"
    return ""


class OneDNNLinear:
    """The weight is an opaque tensor of oneDNN's."""

    def pack(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return packed

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return out


onednn_linear = OneDNNLinear()
