"""What Triton's kernels promise of `--deterministic`, by the contract's tests."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels.ops import KernelQuery
from tgi_core.plugins.specs import resolve
from tgi_core.testing.contract import test_invariance as contract
from tgi_core.triton import attention
from tgi_core.triton.registry import triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = ("float32", "bfloat16", "float16") if DEVICE == "cuda" else ("float32",)
KERNELS = {(spec.op, spec.name): spec for spec in triton_kernels(DEVICE)}


def query(dtype, size=64):
    return KernelQuery(device=DEVICE, torch_device=DEVICE, dtype=dtype, head_size=size, block_size=32)


#: as the contract knows a vendor
VENDOR = SimpleNamespace(
    query=query,
    why_not=lambda spec, query: resolve(spec.supports)(query),
    backend=SimpleNamespace(torch_device=torch.device(DEVICE)),
    probe=SimpleNamespace(kind="cuda"),
)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def kernel(op):
    return next(spec for (name, _), spec in KERNELS.items() if name == op and spec.batch_invariant)


@dtypes
@pytest.mark.parametrize("op", contract.NORMS)
def test_norms(op, dtype):
    contract.test_norms(VENDOR, kernel(op), dtype, 1000)


@dtypes
def test_look_up(dtype):
    contract.test_look_up(VENDOR, kernel("look_up"), dtype)


def test_angles():
    contract.test_angles(VENDOR, kernel("angles"), "float32")


@dtypes
def test_rotary(dtype):
    contract.test_rotary(VENDOR, kernel("rotary"), dtype)


@dtypes
@pytest.mark.parametrize("op", contract.ACTIVATIONS)
def test_activations(op, dtype):
    contract.test_activations(VENDOR, kernel(op), dtype, 62)


@dtypes
@pytest.mark.parametrize("shape", [(33, 100), (64, 128)] if DEVICE == "cpu" else [(33, 1000), (9000, 576)], ids=str)
def test_products(shape, dtype):
    contract.test_products(VENDOR, kernel("linear"), dtype, shape)


@dtypes
def test_experts(dtype):
    contract.test_experts(VENDOR, kernel("experts"), dtype)


@pytest.mark.parametrize("op", contract.CHOICES)
def test_choices(op, monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(contract, "BATCHES", [(0, 1), (1, 3), (2, 17), (79, 1)])
    contract.test_choices(VENDOR, kernel(op), "float32")


@dtypes
@pytest.mark.parametrize("layer", ["groups", "window"] if DEVICE == "cpu" else contract.LAYERS)
def test_attention(layer, dtype, monkeypatch):
    if DEVICE == "cpu":  # the interpreter is slow
        cuts = {
            "whole, beside others": ([150], True),
            "chunks": ([64, 64, 22], False),
            "decodes": ([147, 1, 1, 1], False),
            "decodes beside others": ([70, 1, 1, 77, 1], True),
        }
        monkeypatch.setattr(contract, "CUTS", cuts)
        monkeypatch.setattr(contract, "TOKENS", 150)
        monkeypatch.setattr(attention, "SPLIT", 64)
    contract.test_attention(VENDOR, kernel("attention"), dtype, layer)


@pytest.mark.parametrize("op", ["linear", "experts"])
def test_what_is_faster_is_chosen_otherwise(op):
    plain, fixed = KERNELS[op, "triton"], KERNELS[op, "triton-fixed"]
    assert plain.priority > fixed.priority
    assert fixed.batch_invariant > plain.batch_invariant
