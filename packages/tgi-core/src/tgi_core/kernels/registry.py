"""The core's own implementations of every op: the reference of each, and the CPU's."""

from __future__ import annotations

from tgi_core.plugins.specs import KernelSpec

_REFERENCE = "tgi_core.kernels.reference"
_CPU = "tgi_core.cpu"

REFERENCE = "reference"  #: name of the implementation that defines an op
_ROW_BY_ROW = ("look_up", "angles", "choose_experts", "apply_bitmask")  #: PyTorch's operators look at a row alone


def _native(op: str, target: str, priority: int = 0) -> KernelSpec:
    """One of the CPU's compiled kernels."""
    supports = f"{_CPU}.kernels:supports"
    return KernelSpec(
        op=op,
        name="native",
        target=f"{_CPU}.{target}",
        device="cpu",
        supports=supports,
        priority=priority,
        batch_invariant=True,
    )


KERNELS = (
    *(
        KernelSpec(op=op, name=REFERENCE, target=f"{_REFERENCE}.{module}:{op}", batch_invariant=op in _ROW_BY_ROW)
        for module, ops in {
            "norm": ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"),
            "look_up": ("look_up",),
            "rotary": ("angles", "rotary"),
            "activation": ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "gelu", "gelu_tanh"),
            "linear": ("linear", "linear_int8", "linear_int4"),
            "affine": ("linear_affine",),
            "moe": ("choose_experts", "experts"),
            "sample": ("greedy", "sample", "penalize", "apply_bitmask", "top_k", "top_p"),
        }.items()
        for op in ops
    ),
    KernelSpec(op="attention", name=REFERENCE, target="tgi_core.attention.reference:ReferenceAttention"),
    *(
        _native(op, f"kernels:{op}")
        for op in (
            *("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "rotary"),
            *("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "gelu", "gelu_tanh"),
            *("greedy", "sample", "penalize", "top_k", "top_p"),
        )
    ),
    *(_native(op, f"linear:native_{op}", priority=10) for op in ("linear", "linear_int8", "linear_int4")),
    _native("experts", "moe:experts"),
    KernelSpec(
        op="linear",
        name="onednn",
        target=f"{_CPU}.linear:onednn_linear",
        device="cpu",
        supports=f"{_CPU}.linear:onednn_supports",
    ),
    KernelSpec(
        op="attention",
        name="native",
        target=f"{_CPU}.attention:CpuAttention",
        device="cpu",
        supports=f"{_CPU}.attention:supports",
        priority=10,
        batch_invariant=True,
    ),
    KernelSpec(
        op="attention",
        name="torch",
        target=f"{_CPU}.torch_attention:TorchAttention",
        device="cpu",
        supports=f"{_CPU}.torch_attention:supports",
    ),
)
