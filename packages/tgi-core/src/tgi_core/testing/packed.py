"""Rounds the weights of a checkpoint and stores them as GPTQ and AWQ do, as their packers' loops have it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  #: of AutoAWQ's packer
WORD_BITS = 32
KEPT = ("embed", "wte", "wpe", "lm_head", "norm", "ln_", "gate.weight", "shared")  #: not linear layers, or kept plain
WEIGHTS = "model.safetensors"


class Parts(NamedTuple):
    """A weight [M, N], of which (level - zero) * scale is left."""

    levels: Tensor  #: [N, M] int32
    zeros: Tensor  #: [G, M] int32
    scales: Tensor  #: [G, M] float16
    groups: Tensor  #: [N] int32, of each input

    def plain(self) -> Tensor:
        """[M, N] float32"""
        groups = self.groups.long()
        return ((self.levels - self.zeros[groups]) * self.scales.float()[groups]).T.contiguous()


def rounded(weight: Tensor, bits: int, group: int, generator: torch.Generator, *, any_order: bool = False) -> Parts:
    """A weight [M, N] in groups of so many inputs; -1 = one of all."""
    inputs = weight.shape[1]
    groups = torch.arange(inputs) // (inputs if group == -1 else group)
    if any_order:
        groups = groups[torch.randperm(inputs, generator=generator)]
    count, most = int(groups.max()) + 1, (1 << bits) - 1
    w = weight.T.float()
    low, high = (torch.stack([op(w[groups == g], 0).values for g in range(count)]) for op in (torch.min, torch.max))
    scales = ((high - low) / most).clamp(min=1e-4).half()
    zeros = (-low / scales.float()).round().clamp(1, most).int()
    levels = (w / scales.float()[groups] + zeros[groups]).round().clamp(0, most).int()
    return Parts(levels, zeros, scales, groups.int())


def pack_words(numbers: Tensor, bits: int, order: Sequence[int] | None = None) -> Tensor:
    """[n, m] -> [n * bits / 32, m] int32"""
    each = WORD_BITS // bits
    words = np.zeros((len(numbers) // each, numbers.shape[1]), dtype=np.uint32)
    for word in range(len(words)):
        for place in range(each):
            number = numbers[word * each + (order or range(each))[place]].numpy().astype(np.uint32)
            words[word] |= number << np.uint32(bits * place)
    return torch.from_numpy(words.view(np.int32).copy())


def gptq(layer: str, parts: Parts, bits: int, *, version: int = 1, ordered: bool = True) -> dict[str, Tensor]:
    """A layer's tensors as AutoGPTQ (version 1 of the format) or GPTQModel (2) stores them.

    Args:
        ordered: inputs of a group follow each other, and no tensor says so.
    """
    zeros = parts.zeros - 1 if version == 1 else parts.zeros
    found = {
        f"{layer}.qweight": pack_words(parts.levels, bits),
        f"{layer}.qzeros": pack_words(zeros.T, bits).T.contiguous(),
        f"{layer}.scales": parts.scales,
    }
    return found if ordered else {**found, f"{layer}.g_idx": parts.groups}


def awq(layer: str, parts: Parts) -> dict[str, Tensor]:
    """The same as AutoAWQ stores them, of 4 bits."""
    return {
        f"{layer}.qweight": pack_words(parts.levels.T, 4, AWQ_ORDER).T.contiguous(),
        f"{layer}.qzeros": pack_words(parts.zeros.T, 4, AWQ_ORDER).T.contiguous(),
        f"{layer}.scales": parts.scales,
    }


def quantise(path: Path, method: str, *, any_order: bool = False) -> tuple[Path, Path]:
    """Beside a checkpoint of one file: (the same in 4 bits, the same rounded as much and plain).

    Args:
        method: "gptq" or "awq".
        any_order: inputs belong to groups in any order, as `desc_act` makes them.
    """
    generator = torch.Generator().manual_seed(1)
    packed, plain = path.with_name(f"{path.name}-{method}"), path.with_name(f"{path.name}-plain")
    for folder in (packed, plain):
        shutil.copytree(path, folder)
    stored: dict[str, Tensor] = {}
    unpacked: dict[str, Tensor] = {}
    for name, tensor in load_file(path / WEIGHTS).items():
        if tensor.dim() != 2 or any(kept in name for kept in KEPT):
            stored[name] = unpacked[name] = tensor
            continue
        parts, layer = rounded(tensor, 4, 32, generator, any_order=any_order), name.removesuffix(".weight")
        stored |= gptq(layer, parts, 4, ordered=False) if method == "gptq" else awq(layer, parts)
        unpacked[name] = parts.plain()
    save_file(stored, packed / WEIGHTS, {"format": "pt"})
    save_file(unpacked, plain / WEIGHTS, {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32, "desc_act": any_order}
    (packed / "config.json").write_text(json.dumps(config))
    return packed, plain
