"""What a kind of GPU registers of these kernels."""

from __future__ import annotations

from tgi_core.plugins.specs import KernelSpec

PACKAGE = "tgi_core.triton"

#: op -> (module, what decides whether it can be used)
_OPS = {
    **dict.fromkeys(("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"), "norm"),
    "rotary": "rotary",
    **dict.fromkeys(("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"), "activation"),
    **dict.fromkeys(("greedy", "sample"), "sample"),
    **dict.fromkeys(("top_k", "top_p"), "filters"),
    "penalize": "penalties",
    "linear": "linear",
    "experts": "experts",
}


def triton_kernels(device: str) -> tuple[KernelSpec, ...]:
    """All of them, for one kind of device."""
    ops = tuple(
        KernelSpec(
            op=op,
            name="triton",
            target=f"{PACKAGE}.{module}:{op}",
            device=device,
            supports=f"{PACKAGE}.support:supports",
        )
        for op, module in _OPS.items()
    )
    attention = KernelSpec(
        op="attention",
        name="triton",
        target=f"{PACKAGE}.attention:TritonAttention",
        device=device,
        supports=f"{PACKAGE}.support:attention_supports",
    )
    return (*ops, attention)
