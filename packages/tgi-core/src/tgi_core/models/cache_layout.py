"""Where sequences and tokens lie in a cache of transformers', whatever its classes: found by comparing shapes.

A cache is a tree of lists, tuples, dicts and objects with tensors and numbers at its leaves.  All sequences of a cache
count as equally long: the shorter ones are padded on the left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tgi_core.errors import UnsupportedModel

Path = tuple[object, ...]  #: of a leaf: keys, indices and attribute names
Change = Callable[[Path, list[Any]], Any]
Make = Callable[[int, int, int], Any]  #: (sequences, tokens, source tokens) -> a cache that holds them

_FEW, _MORE = 2, 3  #: sizes of the caches that are compared


@dataclass(frozen=True)
class Axes:
    """What counts sequences, tokens and source tokens: a dimension of a tensor, 0 for a plain number, None: nothing."""

    sequences: int | None
    tokens: int | None
    source: int | None


class CacheLayout:
    """How to join the caches of several batches, and how to drop sequences from one.

    Args:
        make: makes caches to compare.
        has_source: whether there are source tokens: the prompt of an encoder-decoder.

    Raises:
        UnsupportedModel: some tensor is of a shape that does not tell where its sequences are.
    """

    def __init__(self, make: Make, *, has_source: bool = False) -> None:
        self._axes: dict[Path, Axes] = {}
        self.sequence_bytes = 0  #: of one sequence, however long it is
        self.token_bytes = 0  #: of one token of one sequence
        self.source_bytes = 0  #: of one source token of one sequence
        caches = [make(_FEW, _FEW, _FEW), make(_MORE, _FEW, _FEW), make(_FEW, _MORE, _FEW)]
        caches.append(make(_FEW, _FEW, _MORE) if has_source else caches[0])
        map_leaves(self._learn, *caches)

    def join(self, caches: Sequence[Any]) -> Any:
        """One cache with the sequences of all, in order; the caches given are used up."""

        def joined(path: Path, leaves: list[Any]) -> Any:
            axes = self._axes[path]
            if not isinstance(leaves[0], Tensor):
                return sum(leaves) if axes.sequences is not None else max(leaves)
            if axes.sequences is None:
                return leaves[0]
            for axis in (axes.tokens, axes.source):
                leaves = leaves if axis is None else _padded(leaves, axis)
            return torch.cat(leaves, axes.sequences)

        return map_leaves(joined, *caches, use_up=True) if len(caches) > 1 else caches[0]

    def select(self, cache: Any, rows: Sequence[int], tokens: int, source: int = 0) -> Any:
        """A cache with these sequences only, and their last tokens only; the cache given is used up."""

        def selected(path: Path, leaves: list[Any]) -> Any:
            leaf, axes = leaves[0], self._axes[path]
            if not isinstance(leaf, Tensor):
                return _number(leaf, axes, (len(rows), tokens, source))
            if axes.sequences is None:
                return leaf
            for axis, most in ((axes.tokens, tokens), (axes.source, source)):
                if axis is not None and leaf.shape[axis] > most:
                    leaf = leaf.narrow(axis, leaf.shape[axis] - most, most)
            return leaf.index_select(axes.sequences, torch.tensor(rows, device=leaf.device))

        return map_leaves(selected, cache, use_up=True)

    def _learn(self, path: Path, leaves: list[Any]) -> Any:
        shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        axes = self._axes[path] = Axes(*(_grown(path, shapes[0], shape) for shape in shapes[1:]))
        if isinstance(leaves[0], Tensor) and axes.sequences is not None:
            row_bytes = leaves[0].nbytes // _FEW
            if axes.tokens is not None:
                self.token_bytes += row_bytes // _FEW
            elif axes.source is not None:
                self.source_bytes += row_bytes // _FEW
            else:
                self.sequence_bytes += row_bytes
        return leaves[0]


def map_leaves(change: Change, *trees: Any, use_up: bool = False) -> Any:
    """A copy of the first tree with each tensor and whole number replaced by `change(path, [that of each tree])`.

    Args:
        use_up: whether the trees let go of each leaf at once, so that never all tensors exist twice.

    Raises:
        UnsupportedModel: the trees are not alike.
    """
    return _mapped(change, (), trees, use_up)


def _mapped(change: Change, path: Path, trees: Sequence[Any], use_up: bool) -> Any:
    first = trees[0]
    if _is_leaf(first):
        if not all(_is_leaf(tree) for tree in trees):
            raise UnsupportedModel(f"{_name(path)} of its cache is not always there")
        return change(path, list(trees))
    if isinstance(first, dict):
        twin = copy.copy(first)
        _map_items(change, path, twin, trees, use_up)
        return twin
    if isinstance(first, (list, tuple)):
        if any(len(tree) != len(first) for tree in trees):
            raise UnsupportedModel(f"{_name(path)} of its cache is not always of one length")
        parts = dict(enumerate(first))
        _map_items(change, path, parts, trees, use_up and isinstance(first, list))
        return type(first)(parts.values())
    if not _has_parts(first):
        return first
    twin = copy.copy(first)
    _map_items(change, path, vars(twin), [vars(tree) for tree in trees], use_up)
    return twin


def _map_items(change: Change, path: Path, out: dict[Any, Any], trees: Sequence[Any], use_up: bool) -> None:
    for key in list(out):
        out[key] = _mapped(change, (*path, key), [tree[key] for tree in trees], use_up)
        if use_up:
            for tree in trees:
                tree[key] = None


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, int) and not isinstance(value, bool))


def _has_parts(value: Any) -> bool:
    """Whether this is an object of a cache, and not a model, a configuration, a class or a function."""
    if isinstance(value, (nn.Module, type, ModuleType)) or callable(value) or hasattr(value, "to_dict"):
        return False
    return hasattr(value, "__dict__")


def _grown(path: Path, shape: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """The axis that grew from `_FEW` to `_MORE`; None if the shapes are equal."""
    if shape == other:
        return None
    grown = [axis for axis, sizes in enumerate(zip(shape, other, strict=False)) if sizes == (_FEW, _MORE)]
    if len(shape) != len(other) or len(grown) != 1 or sum(a != b for a, b in zip(shape, other, strict=True)) != 1:
        raise UnsupportedModel(f"{_name(path)} of its cache has shapes that do not tell its sequences apart")
    return grown[0]


def _padded(leaves: list[Tensor], axis: int) -> list[Tensor]:
    """All as long as the longest, with zeros before their beginning."""
    longest = max(leaf.shape[axis] for leaf in leaves)
    return [leaf if leaf.shape[axis] == longest else _pad(leaf, axis, longest) for leaf in leaves]


def _pad(leaf: Tensor, axis: int, length: int) -> Tensor:
    shape = list(leaf.shape)
    shape[axis] = length - shape[axis]
    return torch.cat((leaf.new_zeros(shape), leaf), axis)


def _number(value: int, axes: Axes, sizes: tuple[int, int, int]) -> int:
    """A count, after a selection."""
    counted = (axes.sequences, axes.tokens, axes.source)
    return next((size for axis, size in zip(counted, sizes, strict=True) if axis is not None), value)


def _name(path: Path) -> str:
    return ".".join(map(str, path)) or "the whole"
