"""config.json's names of activations, and the ops that compute them."""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.errors import UnsupportedModel
from tgi_core.kernels.ops import Activation, Kernels

_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_tanh")


def activation(name: str, kernels: Kernels) -> Activation:
    """[T, N] -> [T, N]

    Raises:
        UnsupportedModel: the name is not known.
    """
    table = {"gelu": kernels.gelu, "relu": torch.relu, "silu": _silu, "swish": _silu}
    return _find(name, table | dict.fromkeys(_GELU_TANH, kernels.gelu_tanh))


def gated_activation(name: str, kernels: Kernels) -> Activation:
    """[T, 2 N] of gate and up -> [T, N]

    Raises:
        UnsupportedModel: the name is not known.
    """
    table = {"silu": kernels.silu_and_mul, "swish": kernels.silu_and_mul, "gelu": kernels.gelu_and_mul}
    return _find(name, table | dict.fromkeys(_GELU_TANH, kernels.gelu_tanh_and_mul))


def invariant_sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), bit by bit whatever is beside a number; of PyTorch's own the CPU's last ones are others."""
    return (1 / (1 + (-x.float()).exp())).to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    """x times its sigmoid."""
    return x * invariant_sigmoid(x)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap), so that nothing exceeds the cap (arXiv 2408.00118)."""
    return torch.tanh(x / cap) * cap


def _find(name: str, table: dict[str, Activation]) -> Activation:
    if name not in table:
        raise UnsupportedModel(f"activation {name!r} is not implemented; known are {', '.join(sorted(table))}")
    return table[name]
