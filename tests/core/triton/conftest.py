"""Triton's interpreter, and libraries that tests do not install."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch


def pytest_configure(config):
    """The contract's tests are called by some of these."""
    config.addinivalue_line("markers", "ops(name, ...): the ops whose kernels a test of the contract is for")


@pytest.fixture(autouse=True)
def _infinite_numbers(faster_interpreter):
    """The interpreter computes with NumPy, which warns of infinities where a GPU does not."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def flash_attn(monkeypatch):
    """flash-attn 2 as it is installed on a GPU, or a stand-in with its signature."""
    if torch.cuda.is_available():
        return pytest.importorskip("flash_attn.flash_attn_interface", reason="flash-attn is not installed")
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return module


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    """flash-attn 2.8's function, for what it is asked here."""
    assert causal
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    assert max_seqlen_k == int(cu_seqlens_k.diff().max())
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    bounds = torch.stack((cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:]), dim=1)
    for q_first, q_last, k_first, k_last in bounds.tolist():
        group = q.shape[1] // k.shape[1]
        keys, values = (x[k_first:k_last].float().repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[q_first:q_last].float(), keys) * softmax_scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        behind = torch.arange(k_last - k_first, device=q.device)
        behind = behind[q_first - q_last :, None] - behind
        if alibi_slopes is not None:
            scores = scores - alibi_slopes[:, None, None] * behind
        hidden = behind < 0
        if window_size[0] >= 0:
            hidden |= behind > window_size[0]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[q_first:q_last] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    return out
