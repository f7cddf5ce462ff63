"""CPU kernels in C++: norms, rotary, activations, choosing tokens.  Meanings in `tgi_core.kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from tgi_core.cpu.native import library, unavailable
from tgi_core.kernels.ops import KernelQuery, Penalties, TokenTables


def supports(query: KernelQuery) -> str:
    """Why the compiled kernels cannot serve this model."""
    if query.dtype not in ("bfloat16", "float32"):
        return f"dtype {query.dtype} is not compiled"
    return unavailable()


def is_bf16(x: Tensor) -> int:
    """How the compiled kernels are told a tensor's dtype, which is bfloat16 or float32."""
    return x.dtype is torch.bfloat16


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Kernels.rms_norm`."""
    x = x.contiguous()
    out, size = torch.empty_like(x), x.shape[-1]
    library().tgi_rms_norm(is_bf16(x), out.data_ptr(), x.data_ptr(), weight.data_ptr(), x.numel() // size, size, eps)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `Kernels.add_rms_norm`; overwrites residual."""
    x, residual = x.contiguous(), residual.contiguous()
    out = torch.empty_like(x)
    library().tgi_add_rms_norm(
        is_bf16(x), out.data_ptr(), residual.data_ptr(), x.data_ptr(), weight.data_ptr(), *x.shape, eps
    )
    return out, residual


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `Kernels.rotary`; overwrites q and k, whose tokens may be strided."""
    for x in (q, k):
        tokens, heads, size = x.shape
        library().tgi_rotary(
            is_bf16(x), x.data_ptr(), x.stride(0), heads, size, cos.data_ptr(), sin.data_ptr(), tokens, cos.shape[1]
        )
    return q, k


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `Kernels.layer_norm`."""
    return _layer_norm(x.contiguous(), None, weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `Kernels.add_layer_norm`; overwrites residual."""
    residual = residual.contiguous()
    return _layer_norm(x.contiguous(), residual, weight, bias, eps), residual


def _layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    out, size = torch.empty_like(x), x.shape[-1]
    library().tgi_layer_norm(
        is_bf16(x),
        out.data_ptr(),
        residual.data_ptr() if residual is not None else None,
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr() if bias is not None else None,
        x.numel() // size,
        size,
        eps,
    )
    return out


SILU, GELU, GELU_TANH = range(3)  # of native/elementwise.cpp


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See `Kernels.silu_and_mul`."""
    return _activate(gate_up, SILU, gated=True)


def gelu_and_mul(gate_up: Tensor) -> Tensor:
    """See `Kernels.gelu_and_mul`."""
    return _activate(gate_up, GELU, gated=True)


def gelu_tanh_and_mul(gate_up: Tensor) -> Tensor:
    """See `Kernels.gelu_tanh_and_mul`."""
    return _activate(gate_up, GELU_TANH, gated=True)


def gelu(x: Tensor) -> Tensor:
    """See `Kernels.gelu`."""
    return _activate(x, GELU, gated=False)


def gelu_tanh(x: Tensor) -> Tensor:
    """See `Kernels.gelu_tanh`."""
    return _activate(x, GELU_TANH, gated=False)


def _activate(x: Tensor, activation: int, *, gated: bool) -> Tensor:
    x = x.contiguous()
    tokens, size = x.shape[0], x.shape[1] // (1 + gated)
    out = x.new_empty(tokens, size)
    library().tgi_activate(is_bf16(x), activation, gated, out.data_ptr(), x.data_ptr(), tokens, size)
    return out


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `Kernels.greedy`."""
    rows, vocab = logits.shape
    ids, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    library().tgi_greedy(
        is_bf16(logits), logits.contiguous().data_ptr(), rows, vocab, ids.data_ptr(), logprobs.data_ptr()
    )
    return ids, logprobs


def sample(logits: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `Kernels.sample`."""
    logits = logits.contiguous()
    rows, vocab = logits.shape
    ids, logprobs, totals = torch.empty(rows, dtype=torch.int64), torch.empty(rows), torch.empty(rows)
    library().tgi_sample(
        logits.data_ptr(), rows, vocab, at.data_ptr(), ids.data_ptr(), logprobs.data_ptr(), totals.data_ptr()
    )
    return ids, logprobs, totals


def penalize(logits: Tensor, tables: TokenTables, slots: Tensor, penalties: Penalties) -> Tensor:
    """See `Kernels.penalize`; overwrites logits."""
    logits = logits.contiguous()
    pointers = (tensor.data_ptr() for tensor in (*tables, slots, *penalties))
    library().tgi_penalize(logits.data_ptr(), *logits.shape, *pointers)
    return logits


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """See `Kernels.top_k`; overwrites logits."""
    logits = logits.contiguous()
    library().tgi_top_k(logits.data_ptr(), *logits.shape, k.data_ptr())
    return logits


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """See `Kernels.top_p`; overwrites logits."""
    logits = logits.contiguous()
    library().tgi_top_p(logits.data_ptr(), *logits.shape, p.data_ptr())
    return logits
