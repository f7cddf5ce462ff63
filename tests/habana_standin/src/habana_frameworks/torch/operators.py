"""torch.ops.hpu: the operators that optimum-habana calls by name."""

import torch

from . import float8

_library = torch.library.Library("hpu", "DEF")
_MOE = (
    "Tensor hidden_states, Tensor expert_routing_table, Tensor router_weights, {}Tensor[] w3, bool permuted_weights, "
    "str activation, int experts_min, int experts_max"
)
_library.define(f"mixture_of_experts({_MOE.format('Tensor[] w1, Tensor[] w2, ')}) -> Tensor")
_library.define(f"mixture_of_experts.fused_weights({_MOE.format('Tensor[] w12, ')}) -> Tensor")
_library.define(
    "rotary_pos_embedding(Tensor input, Tensor sin, Tensor cos, Tensor? position_ids, int offset, int mode) -> Tensor"
)

_ACTIVATIONS = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu, "relu": torch.relu}


def _experts(x, chosen, weights, w1, w2, w3, permuted, activation, first, last):
    mixed, act = torch.zeros_like(x), _ACTIVATIONS[activation]
    for expert in range(first, last + 1):
        gate, up, down = (w[expert - first].t() if permuted else w[expert - first] for w in (w1, w2, w3))
        share = ((chosen == expert).to(x.dtype) * weights).sum(-1, keepdim=True)
        mixed += share * ((act(x @ gate) * (x @ up)) @ down)
    return mixed


def _experts_of_fused(x, chosen, weights, w12, w3, permuted, *rest):
    pairs = [w.chunk(2, dim=0 if permuted else 1) for w in w12]
    return _experts(x, chosen, weights, [gate for gate, _ in pairs], [up for _, up in pairs], w3, permuted, *rest)


def _rotary(x, sin, cos, position_ids, offset, mode):
    from .hpex.kernels import RotaryPosEmbeddingHelperV2

    return RotaryPosEmbeddingHelperV2.apply(x, cos, sin, position_ids, mode)


for _name, _function in {
    "mixture_of_experts": _experts,
    "mixture_of_experts.fused_weights": _experts_of_fused,
    "rotary_pos_embedding": _rotary,
}.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")

float8.define(_library)
