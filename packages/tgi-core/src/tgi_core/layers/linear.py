"""Linear layers whose weight may be stored in several matrices of the checkpoint, and divided over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tgi_core.kernels.ops import Activation, GatedLinearKernel, LinearKernel
from tgi_core.layers.build import BuildContext
from tgi_core.layers.packing import packing_of
from tgi_core.layers.unsummed import Unsummed
from tgi_core.model_config import ModelConfig
from tgi_core.weights.loader import Source


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of a stored weight that are divided over ranks together."""

    size: int  #: rows of one rank
    copies: int = 1  #: neighbouring ranks that hold the same rows


#: rows of one stored weight: one part, or several that are stacked in it
Rows = int | Part | tuple[int | Part, ...]


@dataclass(frozen=True)
class _Block:
    """Where rows of this layer lie in a stored weight."""

    row: int  #: here
    size: int
    at: int  #: there


class Linear(nn.Module):
    """y = x W^T + b, with W the checkpoint's `names` stacked; every rank holds all of it.

    Args:
        names: what the checkpoint calls the stacked matrices, in place of this module's own name.
        sizes: output features of each.
        transposed: the checkpoint stores [in, out], as GPT-2's does.
        arrange: puts the rows of the stacked weight [out, in], and of the bias [out], into the order of this layer.
    """

    def __init__(
        self,
        in_features: int,
        sizes: Sequence[Rows],
        names: Sequence[str],
        build: BuildContext,
        *,
        bias: bool = False,
        transposed: bool = False,
        arrange: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.transposed, self.arrange = transposed, arrange
        self.in_features, self.names, self.has_bias = in_features, tuple(names), bias
        self.parts = [_parts(rows) for rows in sizes]
        self.group, self.dtype, self.affine = build.group, build.dtype, build.kernels.linear_affine
        self.kernel = build.linear
        self.product: LinearKernel  # of what was loaded
        self.packed: Any = None
        self.bias: Tensor | None = None

    def load(self, source: Source) -> None:
        stored = list(zip(self.names, *self._blocks(), strict=True))
        inputs, first_input = self.in_features * self.input_share[1], self.in_features * self.input_share[0]
        for name, outputs, _ in stored:
            source.sibling(name).require("weight", *((inputs, outputs) if self.transposed else (outputs, inputs)))
        rows = sum(part.size for parts in self.parts for part in parts)
        in_levels = (source.sibling(name).keeps_levels("weight") for name in self.names)
        packing = packing_of(self.kernel, self.affine, self.dtype, in_levels)
        weight = source.staging(rows, self.in_features, packing.staged)
        bias = source.empty(rows, dtype=self.dtype) if self.has_bias else None
        for name, outputs, blocks in stored:
            sibling = source.sibling(name)
            for block in blocks:
                out = weight[block.row : block.row + block.size]
                if self.transposed:
                    sibling.copy("weight", out.T, (inputs, outputs), (first_input, block.at))
                else:
                    sibling.copy("weight", out, (outputs, inputs), (block.at, first_input))
                if bias is not None:
                    sibling.copy("bias", bias[block.row : block.row + block.size], (outputs,), (block.at,))
        if self.arrange is not None:
            weight, bias = self.arrange(weight), self.arrange(bias) if bias is not None else None
        self.product, self.packed, self.bias = packing.kernel, packing.kernel.pack(weight), bias

    def _blocks(self) -> tuple[list[int], list[list[_Block]]]:
        """(stored rows, blocks of this rank) of each stored weight."""
        stored, blocks, row = [], [], 0
        for parts in self.parts:
            at, found = 0, []
            for part in parts:
                index, count = self.output_share(part)
                found.append(_Block(row, part.size, at + index * part.size))
                at, row = at + count * part.size, row + part.size
            stored.append(at)
            blocks.append(found)
        return stored, blocks

    def output_share(self, part: Part) -> tuple[int, int]:
        """(index, count) of this rank's rows among the equal pieces of a stored part."""
        return 0, 1

    @property
    def input_share(self) -> tuple[int, int]:
        """(index, count) of this rank's columns."""
        return 0, 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.product(x, self.packed, self.bias)
        return y


class ColumnLinear(Linear):
    """A linear layer whose outputs are divided: `sizes` are those of one rank, and so is the result."""

    def gated(self, x: Tensor, activation: Activation) -> Tensor:
        """x [T, N], with two equal sizes -> activation(y) [T, M / 2]"""
        if isinstance(self.product, GatedLinearKernel):
            return self.product.gated(x, self.packed, self.bias, activation)
        return activation(self(x))

    def output_share(self, part: Part) -> tuple[int, int]:
        return self.group.rank // part.copies, self.group.size // part.copies


class RowLinear(Linear):
    """A linear layer whose inputs are divided: `in_features` are those of one rank.

    It gives this rank's share of a sum over all, of which the first rank's has the bias.
    """

    def load(self, source: Source) -> None:
        super().load(source)
        if self.group.rank > 0:
            self.bias = None

    @property
    def input_share(self) -> tuple[int, int]:
        return self.group.rank, self.group.size

    def forward(self, x: Tensor) -> Unsummed:  # type: ignore[override]
        return Unsummed(super().forward(x), self.group)


class Head(Linear):
    """hidden [B, N] -> logits [B, V], the same on all ranks; each multiplies with its share of the vocabulary, if it
    can be divided."""

    def __init__(
        self, in_features: int, vocab_size: int, name: str, build: BuildContext, *, bias: bool = False
    ) -> None:
        self.is_whole = build.group.size == 1 or vocab_size % build.group.size != 0
        rows = vocab_size if self.is_whole else vocab_size // build.group.size
        super().__init__(in_features, (rows,), (name,), build, bias=bias)
        self.kernel = build.head or build.linear

    def output_share(self, part: Part) -> tuple[int, int]:
        return (0, 1) if self.is_whole else (self.group.rank, self.group.size)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.is_whole else self.group.all_gather(y).movedim(0, -2).flatten(-2)


def _parts(rows: Rows) -> tuple[Part, ...]:
    several = rows if isinstance(rows, tuple) else (rows,)
    return tuple(part if isinstance(part, Part) else Part(part) for part in several)


def qkv_parts(config: ModelConfig) -> tuple[Part, Part, Part]:
    """Rows of queries, keys and values."""
    kv = Part(config.num_kv_heads * config.head_size, config.kv_copies)
    return Part(config.num_heads * config.head_size), kv, kv


def split_fused_heads(groups: int, queries: int) -> Callable[[Tensor], Tensor]:
    """For checkpoints that store, group by group, the rows of `queries` query heads, a key head and a value head.

    Returns:
        an `arrange` that puts all queries first, then all keys, then all values.
    """

    def arrange(rows: Tensor) -> Tensor:
        heads = rows.view(groups, queries + 2, rows.shape[0] // (groups * (queries + 2)), -1)
        parts = (heads[:, :queries], heads[:, queries : queries + 1], heads[:, queries + 1 :])
        return torch.cat([part.flatten(0, 2) for part in parts]).view(rows.shape)

    return arrange
