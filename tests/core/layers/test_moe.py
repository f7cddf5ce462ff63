"""Experts: who runs, over which tokens, with which weight."""

import pytest
import torch
import torch.nn.functional as F

from tgi_core.errors import UnsupportedModel, WeightsError
from tgi_core.kernels.reference import activation, affine, linear
from tgi_core.kernels.reference.moe import Experts, choose_experts
from tgi_core.layers.build import BuildContext
from tgi_core.layers.moe import SparseMoE
from tgi_core.model_config import parse_model_config
from tgi_core.weights.loader import Checkpoint, Source
from tgi_core.weights.reader import WeightReader

HIDDEN, SIZE, EXPERTS, CHOSEN = 8, 6, 5, 2
CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 16,
    "hidden_size": HIDDEN,
    "intermediate_size": SIZE,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
}


class Tensors(WeightReader):
    """A checkpoint in memory."""

    def __init__(self, tensors):
        self.tensors, self.names = tensors, frozenset(tensors)

    def shape(self, name):
        return tuple(self.tensors[name].shape)

    def get(self, name, *, dtype=None, rows=None):
        return self.tensors[name][rows or slice(None)]


class Kernels:
    """The reference, which counts the rows of each product."""

    experts, linear_affine, choose_experts = Experts, affine.linear_affine, staticmethod(choose_experts)

    silu_and_mul, gelu_and_mul, gelu_tanh_and_mul = (
        staticmethod(activation.silu_and_mul),
        staticmethod(activation.gelu_and_mul),
        staticmethod(activation.gelu_tanh_and_mul),
    )

    def __init__(self):
        self.linear, self.rows = self, []

    def pack(self, weight):
        return linear.linear.pack(weight)

    def __call__(self, x, packed, bias):
        self.rows.append(len(x))
        return linear.linear(x, packed, bias)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(1)
    tensors = {"mlp.gate.weight": torch.randn(EXPERTS, HIDDEN, generator=generator)}
    for i in range(EXPERTS):
        for name, shape in (("gate", (SIZE, HIDDEN)), ("up", (SIZE, HIDDEN)), ("down", (HIDDEN, SIZE))):
            tensors[f"mlp.experts.{i}.{name}_proj.weight"] = torch.randn(shape, generator=generator)
    return tensors


def layer(tensors, dtype=torch.float32, **config):
    kernels = Kernels()
    moe = SparseMoE(parse_model_config({**CONFIG, **config}), BuildContext(kernels, kernels.linear, None, dtype), SIZE)
    moe.load(Source(Checkpoint(Tensors(tensors), ("",)), "mlp"))
    return moe, kernels


def one_by_one(tensors, x, normalised):
    out = []
    for row in x:
        weights, experts = (tensors["mlp.gate.weight"] @ row).softmax(-1).topk(CHOSEN)
        weights = weights / weights.sum() if normalised else weights
        parts = []
        for weight, expert in zip(weights, experts.tolist(), strict=True):
            gate, up, down = (tensors[f"mlp.experts.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down"))
            parts.append(weight * (down @ (F.silu(gate @ row) * (up @ row))))
        out.append(sum(parts))
    return torch.stack(out)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("tokens", [1, 17])
def test_equals_token_by_token(tensors, tokens, normalised):
    moe, _ = layer(tensors, norm_topk_prob=normalised)
    x = torch.randn(tokens, HIDDEN)
    torch.testing.assert_close(moe(x).share, one_by_one(tensors, x, normalised), rtol=1e-4, atol=1e-5)


def test_each_active_expert_runs_once_over_its_tokens(tensors):
    moe, kernels = layer(tensors)
    x = torch.randn(3, HIDDEN)[[0, 1, 0, 0]]
    moe(x)
    counts = torch.bincount(moe.route(x)[1].flatten(), minlength=EXPERTS)
    kernels.rows.clear()
    moe(x)
    assert kernels.rows[0] == 4
    assert kernels.rows[1:] == [n for count in counts.tolist() if count for n in (count, count)]


def test_keeps_the_dtype(tensors):
    moe, _ = layer(tensors, torch.bfloat16)
    assert moe(torch.randn(3, HIDDEN, dtype=torch.bfloat16)).share.dtype is torch.bfloat16


def test_more_chosen_than_there_are_is_refused(tensors):
    with pytest.raises(UnsupportedModel, match="6 of 5 experts"):
        layer(tensors, num_experts_per_tok=6)


def test_a_missing_expert_is_named(tensors):
    del tensors["mlp.experts.3.up_proj.weight"]
    with pytest.raises(WeightsError, match=r"no tensor mlp\.experts\.3\.up_proj\.weight"):
        layer(tensors)


def test_fused_experts_of_another_count_are_refused(tensors):
    fused = {"mlp.gate.weight": tensors["mlp.gate.weight"], "mlp.experts.down_proj": torch.zeros(4, HIDDEN, SIZE)}
    fused["mlp.experts.gate_up_proj"] = torch.zeros(4, 2 * SIZE, HIDDEN)
    with pytest.raises(WeightsError, match=r"gate_up_proj has shape \[4, 12, 8\]"):
        layer(fused)
