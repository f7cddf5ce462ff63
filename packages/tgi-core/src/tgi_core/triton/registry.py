"""What a kind of GPU registers of these kernels."""

from __future__ import annotations

from functools import partial

from tgi_core.plugins.specs import KernelSpec

PACKAGE = "tgi_core.triton"

#: op -> module
_OPS = {
    **dict.fromkeys(("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"), "norm"),
    "look_up": "look_up",
    **dict.fromkeys(("angles", "rotary"), "rotary"),
    **dict.fromkeys(("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "gelu", "gelu_tanh"), "activation"),
    **dict.fromkeys(("greedy", "sample"), "sample"),
    **dict.fromkeys(("top_k", "top_p"), "filters"),
    "penalize": "penalties",
    "apply_bitmask": "bitmask",
    "choose_experts": "routing",
    "linear": "linear",
    "experts": "experts",
}
_ROUNDED = ("linear_int8", "linear_int4", "linear_affine")
#: what is chosen by the number of rows has an implementation that is not: `fixed_linear`
_FASTER_BY_ROWS = ("linear", "experts")


def triton_kernels(device: str) -> tuple[KernelSpec, ...]:
    """All of them, for one kind of device."""
    offer = partial(KernelSpec, device=device, name="triton")
    plain = partial(offer, supports=f"{PACKAGE}.support:supports")
    ops = tuple(
        plain(op=op, target=f"{PACKAGE}.{module}:{op}", batch_invariant=op not in _FASTER_BY_ROWS)
        for op, module in _OPS.items()
    )
    rounded = tuple(
        offer(op=op, target=f"{PACKAGE}.rounded:{op}", supports=f"{PACKAGE}.support:rounded_supports")
        for op in _ROUNDED
    )
    fixed = tuple(
        plain(op=op, name="triton-fixed", target=f"{PACKAGE}.{_OPS[op]}:fixed_{op}", priority=-1, batch_invariant=True)
        for op in _FASTER_BY_ROWS
    )
    attention = offer(
        op="attention",
        target=f"{PACKAGE}.attention:TritonAttention",
        supports=f"{PACKAGE}.support:attention_supports",
        batch_invariant=True,
    )
    return (*ops, *rounded, *fixed, attention)
