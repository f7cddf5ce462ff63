"""torch.ops.hpu: the operators in float8 that Intel Neural Compressor calls, in plain arithmetic.

A number is stored as number * scale_inv, and stands for stored * scale.  A Gaudi 2 has no E4M3 beyond 240.
"""

import torch

REACH = {torch.float8_e4m3fn: 240.0, torch.float8_e5m2: 57344.0}
#: operator -> its overload for scales that are tensors, then for those that are numbers
SCHEMAS = {
    "cast_to_fp8_v2": (
        "(Tensor input, {scale}? scale=None, bool stochastic_rounding=False, bool is_amax=False, "
        "ScalarType dtype=None, int[]? scale_shape=None) -> (Tensor, Tensor)",
        "scalar",
    ),
    "cast_from_fp8": (
        "(Tensor input, {scale}? scale, ScalarType out_dtype, int[]? scale_shape=None) -> Tensor",
        "scalar",
    ),
    "fp8_gemm_v2": (
        "(Tensor A, bool trans_A, Tensor B, bool trans_B, Tensor? D, ScalarType out_dtype, {scale}? A_scale_inv=None, "
        "{scale}? B_scale_inv=None, Tensor? bias=None, bool accumulate=False, int[]? B_scale_shape=None) -> Tensor",
        "scalar",
    ),
}


def cast_to(x, scale=None, stochastic_rounding=False, is_amax=False, dtype=torch.float8_e4m3fn, scale_shape=None):
    scaled = x.float() * (1.0 if scale is None else scale)
    reach = REACH[dtype]
    return scaled.clamp(-reach, reach).to(dtype), x.abs().max().float()


def cast_from(x, scale, out_dtype, scale_shape=None):
    return (x.float() * (1.0 if scale is None else scale)).to(out_dtype)


def gemm(a, trans_a, b, trans_b, d, out_dtype, a_scale=None, b_scale=None, bias=None, accumulate=False, b_shape=None):
    a, b = a.float(), b.float()
    a, b = (x.transpose(-1, -2) if turned else x for x, turned in ((a, trans_a), (b, trans_b)))
    product = a @ b
    for scale in (a_scale, b_scale):
        product = product * (1.0 if scale is None else scale)
    if bias is not None:
        product = product + bias
    if accumulate:
        product = product + d
    return product.to(out_dtype)


def define(library):
    """Of `hpu`."""
    functions = {"cast_to_fp8_v2": cast_to, "cast_from_fp8": cast_from, "fp8_gemm_v2": gemm}
    for name, (schema, overload) in SCHEMAS.items():
        for full, scale in ((name, "Tensor"), (f"{name}.{overload}", "float")):
            library.define(full + schema.format(scale=scale))
            library.impl(full, functions[name], "CompositeExplicitAutograd")
