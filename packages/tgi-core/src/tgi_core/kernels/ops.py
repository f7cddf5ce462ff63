"""The kernel interface: what a model may ask of a device.

Letters: T tokens of this step, B sequences, N features, M output features, H query heads, Hkv key and value heads,
D head size, R rotated dimensions, V vocabulary.  An op may overwrite the tensors that it is told to return; use what it
returns.  An op keeps the dtype of its first argument unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class KernelQuery:
    """What a kernel is asked to support: one model on one device."""

    device: str
    dtype: str  #: "float32" | "bfloat16" | "float16"
    head_size: int
    block_size: int
    torch_device: str = "cpu"  #: where PyTorch keeps this device's tensors
    sliding_window: bool = False
    soft_cap: bool = False
    encoder_decoder: bool = False  #: it has encoder and cross-attention layers
    relative_bias: bool = False  #: scores get a bias by distance
    deterministic: bool = False  #: see `KernelSpec.batch_invariant`
    kv_dtype: str = "model"  #: that keys and values are kept in: "model" | "fp8_e4m3fn" | "fp8_e5m2"


class LinearKernel(Protocol):
    """A matrix product with a weight that may be stored in the kernel's own layout."""

    def pack(self, weight: Tensor) -> Any:
        """weight [M, N] -> what `__call__` takes, a copy: the argument's memory is used again."""

    def __call__(self, x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
        """(x [T, N], packed, bias [M] or None) -> [T, M]"""


@runtime_checkable
class RowsKernel(LinearKernel, Protocol):
    """A linear kernel that finds rows in what it packed, so that a head can serve as its model's embedding too."""

    def rows(self, packed: Any, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """(packed [M, N], ids [T] int64) -> [T, N] of dtype"""


@runtime_checkable
class GatedLinearKernel(LinearKernel, Protocol):
    """A linear kernel that need not write gate and up to memory."""

    def gated(self, x: Tensor, packed: Any, bias: Tensor | None, activation: Activation) -> Tensor:
        """(x [T, N], packed [2 M, N], bias [2 M] or None, gated activation) -> [T, M]"""


class LateFrequencies(NamedTuple):
    """Other ones from a position on."""

    first: int
    inverse: Tensor  #: [R/2] float32


class Frequencies(NamedTuple):
    """Of a rotary embedding (arXiv 2104.09864)."""

    inverse: Tensor  #: [R/2] float32
    factor: float = 1.0  #: of cos and sin
    late: LateFrequencies | None = None


class Experts(Protocol):
    """The experts of one layer, with their weights."""

    waits_for_device: bool  #: for what was chosen, so that steps cannot be recorded

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """(x [T, N], chosen [T, K] int64, weights [T, K] float32) -> [T, N]: the weighted sum of K experts' outputs."""


class TokenTables(NamedTuple):
    """How often each token is in the prompt, and in the output, of the sequence in each slot."""

    prompt: Tensor  #: [slots, V] int32
    output: Tensor  #: [slots, V] int32


class Penalties(NamedTuple):
    """Penalties on tokens that were there before, one number for each row: applied in this order."""

    repetition: Tensor  #: [B] of prompt and output: positive logits divided, negative multiplied (arXiv 1909.05858)
    frequency: Tensor  #: [B] subtracted for each time that a token is in the output (OpenAI's API reference)
    presence: Tensor  #: [B] subtracted once for each token of the output (OpenAI's API reference)


class GroupedLinearKernel(LinearKernel, Protocol):
    """A linear kernel that rounds weights, and takes more care of those that matter more."""

    def pack(self, weight: Tensor, importance: Tensor | None = None) -> Any:
        """(weight [M, N], importance of errors at each input [N] float32 or None) -> what `__call__` takes, a copy."""


class AffineLinearKernel(LinearKernel, Protocol):
    """A linear kernel for weights that a checkpoint keeps as (level - zero) * scale."""

    keeps_levels: bool  #: in memory; else they are better read as plain weights

    def pack(self, weight: Tensor) -> Any:
        """codes [M, N] int32 -> what `__call__` takes, a copy.

        A code holds a weight's level in bits 0 to 7, its zero in bits 8 to 15, and its scale, as float16, above them.
        Groups of inputs share zeros and scales, in any order.
        """


@dataclass(frozen=True)
class Kernels:
    """The chosen implementation of every op, fixed before the model is built."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """(x [..., N], weight [N], eps) -> [..., N]; the norm is taken in float32 (arXiv 1910.07467)."""

    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    """(x [T, N], residual [T, N], weight [N], eps) -> (norm(x + residual), x + residual); may overwrite residual."""

    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    """(x [..., N], weight [N], bias [N] or None, eps) -> [..., N] (arXiv 1607.06450); the norm is taken in float32."""

    add_layer_norm: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]
    """(x [T, N], residual [T, N], weight [N], bias [N] or None, eps) -> (norm(x + residual), x + residual); may
    overwrite residual."""

    look_up: Callable[[Tensor, Tensor], Tensor]
    """(table [V, N], rows [T] int64) -> [T, N] of the table's dtype, and (table [V], rows [T] int64) -> [T]"""

    angles: Callable[[Tensor, Frequencies], tuple[Tensor, Tensor]]
    """(positions [T] int64, frequencies) -> (cos [T, R/2], sin [T, R/2]), float32: of position * frequency, rounded to
    float32, times the factor."""

    rotary: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """(q [T, H, D], k [T, Hkv, D], cos [T, R/2], sin [T, R/2]) -> (q, k); halves of the first R dimensions rotated
    (arXiv 2104.09864); cos and sin are float32; may overwrite q and k."""

    silu_and_mul: Activation
    """(gate_up [T, 2 N]) -> silu(gate) * up [T, N]"""

    gelu_and_mul: Activation
    """(gate_up [T, 2 N]) -> gelu(gate) * up [T, N], with the exact gelu (arXiv 1606.08415)"""

    gelu_tanh_and_mul: Activation
    """(gate_up [T, 2 N]) -> gelu(gate) * up [T, N], with gelu's tanh approximation"""

    gelu: Activation
    """(x [T, N]) -> [T, N], exact"""

    gelu_tanh: Activation
    """(x [T, N]) -> [T, N], the tanh approximation"""

    linear: LinearKernel
    """pack(weight [M, N]), then (x [T, N], packed, bias [M] or None) -> [T, M]"""

    linear_int8: LinearKernel
    """As `linear`, but `pack` rounds the weight to int8 with one scale for each of the M outputs."""

    linear_int4: GroupedLinearKernel
    """As `linear`, but `pack` rounds the weight to int4, in groups of 32 inputs with a step and an offset of their own;
    it may be told the importance of each input."""

    linear_affine: AffineLinearKernel
    """As `linear`, of weights that a checkpoint keeps in a few bits (GPTQ, arXiv 2210.17323; AWQ, arXiv 2306.00978)."""

    choose_experts: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    """(scores [T, E], K, whether weights sum to one) -> (weights [T, K] float32, experts [T, K] int64): softmax of the
    scores, then the K most likely of each token, in this order (arXiv 2101.03961, 2401.04088)."""

    experts: Callable[[LinearKernel, Activation, Sequence[Any], Sequence[Any]], Experts]
    """(linear op, gated activation, what it packed of each expert's gate and up [2 M, N], of each one's down [N, M]) ->
    Experts: down(activation(gate_up(x))) of each (arXiv 2101.03961)."""

    greedy: Callable[[Tensor], tuple[Tensor, Tensor]]
    """(logits [B, V]) -> (most likely ids [B] int64, their log-probabilities [B] float32); NaN in a row gives NaN."""

    sample: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    """(logits [B, V] float32, at [B] float64) -> (ids [B] int64, their log-probabilities [B], logsumexp of the logits
    [B]): the token in which the cumulative distribution passes `at` in [0, 1); the most likely one where `at` is
    negative; NaN in a row gives NaN."""

    top_k: Callable[[Tensor, Tensor], Tensor]
    """(logits [B, V] float32, k [B] int64) -> the same with -inf below the k-th largest; may overwrite logits."""

    top_p: Callable[[Tensor, Tensor], Tensor]
    """(logits [B, V] float32, p [B] float32) -> the same with -inf below the smallest set of most likely tokens whose
    probability reaches p; at least one stays (arXiv 1904.09751); may overwrite logits."""

    penalize: Callable[[Tensor, TokenTables, Tensor, Penalties], Tensor]
    """(logits [B, V] float32, tables, slots [B] int64, penalties) -> the same, lower for tokens that were there before;
    may overwrite logits."""

    apply_bitmask: Callable[[Tensor, Tensor], Tensor]
    """(logits [B, V] float32, allowed [B, ceil(V / 32)] int32) -> the same with -inf where the bit of token v, number
    v % 32 of word v // 32, is 0, which is how grammars tell what may follow; may overwrite logits.  A ValueError says
    that there are rows or tokens without bits."""

    attention: Callable[[KernelQuery], Any]
    """(KernelQuery) -> AttentionBackend"""
