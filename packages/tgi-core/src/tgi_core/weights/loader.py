"""Fills a model from a checkpoint: every layer that can load itself is asked to, from the name it has there."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from tgi_core.errors import WeightsError

if TYPE_CHECKING:
    from tgi_core.weights.reader import WeightReader

log = logging.getLogger(__name__)

CPU = torch.device("cpu")

#: tensors that checkpoints carry and nobody needs: what can be computed, copies, and biases without a meaning
DERIVED = re.compile(
    r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias"
    r"|coder\.embed_tokens\.weight|EncDecAttention\.relative_attention_bias\.weight)$"
)


class Loadable(Protocol):
    """A layer that can load itself."""

    def load(self, source: Source) -> None:
        """Fill this layer."""


class Checkpoint:
    """A reader that finds tensors with and without the model's prefix and remembers which were used.

    Args:
        prefixes: put before a layer's path in the model to get its name in the checkpoint; tried in order.
        device: where the model lies.
        copy_weight: see `WeightReader.copy`.
    """

    def __init__(
        self,
        reader: WeightReader,
        prefixes: Sequence[str],
        device: torch.device = CPU,
        copy_weight: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    ) -> None:
        self.reader, self.prefixes, self.device, self.copy_weight = reader, tuple(prefixes), device, copy_weight
        self.used: set[str] = set()
        self._staging = torch.empty(0, dtype=torch.uint8, device=device)

    def staging(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Memory [rows, columns] for a matrix on its way into a kernel's own layout; the next call reuses it.

        One buffer for all layers, because freeing and taking large blocks in turn leaves holes in the heap.
        """
        size_bytes = rows * columns * dtype.itemsize
        if len(self._staging) < size_bytes:
            self._staging = torch.empty(size_bytes, dtype=torch.uint8, device=self.device)
        return self._staging[:size_bytes].view(dtype).view(rows, columns)

    def find(self, name: str) -> str | None:
        """The checkpoint's name of a tensor that the model calls `name`."""
        return next((prefix + name for prefix in self.prefixes if prefix + name in self.reader.names), None)

    def require(self, name: str, shape: tuple[int, ...]) -> str:
        """The checkpoint's name of a tensor that is there and has this shape.

        Raises:
            WeightsError: it is missing or has another shape.
        """
        found = self.find(name)
        if found is None:
            tried = " or ".join(prefix + name for prefix in self.prefixes)
            raise WeightsError(
                f"the checkpoint has no tensor {tried}: "
                "its files are incomplete, or config.json describes another model"
            )
        if (stored := tuple(self.reader.shape(found))) != shape:
            raise WeightsError(
                f"{found} has shape {list(stored)} where config.json asks for {list(shape)}: "
                "the weights and config.json are of different models"
            )
        return found

    def copy(self, name: str, out: Tensor, shape: tuple[int, ...] | None = None, at: tuple[int, ...] = ()) -> None:
        """Copy a tensor into `out`, which has the model's shape and dtype; see `require`.

        Args:
            shape: of the tensor, where only the block of it that begins `at` is wanted.
        """
        found = self.require(name, shape or tuple(out.shape))
        self.reader.copy(found, out, at, self.copy_weight)
        self.used.add(found)


class Source:
    """One layer's place in a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, path: str) -> None:
        self.checkpoint, self.path = checkpoint, path

    def sibling(self, name: str) -> Source:
        """The place beside this one that is called `name`."""
        parent, dot, _ = self.path.rpartition(".")
        return Source(self.checkpoint, parent + dot + name)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has this tensor."""
        return self.checkpoint.find(f"{self.path}.{name}") is not None

    def keeps_levels(self, name: str) -> bool:
        """Whether this matrix can be copied as int32 codes; see `WeightReader.keeps_levels`."""
        found = self.checkpoint.find(f"{self.path}.{name}")
        return found is not None and self.checkpoint.reader.keeps_levels(found)

    def staging(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """See `Checkpoint.staging`."""
        return self.checkpoint.staging(rows, columns, dtype)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory of the model's device, for `copy`."""
        return torch.empty(shape, dtype=dtype, device=self.checkpoint.device)

    def require(self, name: str, *shape: int) -> None:
        """Refuse a tensor that is missing or has another shape, before memory is taken; see `Checkpoint.require`."""
        self.checkpoint.require(f"{self.path}.{name}", shape)

    def read(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """The tensor `name` of this layer, in memory of its own; see `Checkpoint.require`."""
        self.require(name, *shape)
        out = self.empty(*shape, dtype=dtype)
        self.copy(name, out)
        return out

    def copy(self, name: str, out: Tensor, shape: tuple[int, ...] | None = None, at: tuple[int, ...] = ()) -> None:
        """Copy the tensor `name` of this layer, or a block of it, into `out`; see `Checkpoint.copy`."""
        self.checkpoint.copy(f"{self.path}.{name}", out, shape, at)


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, progress: Callable[[float], None] = lambda fraction: None
) -> None:
    """Fill `model` layer by layer; peak memory is the model plus one layer.

    Args:
        progress: called with the fraction done.

    Raises:
        WeightsError: a tensor is missing or has another shape.
    """
    layers = list(_loadable(model))
    for done, (path, layer) in enumerate(layers, 1):
        layer.load(Source(checkpoint, path))
        progress(done / len(layers))
    unused = sorted(name for name in checkpoint.reader.names - checkpoint.used if not DERIVED.search(name))
    if unused:
        log.warning("%d tensors of the checkpoint are not used: %s", len(unused), ", ".join(unused[:5]))


def _loadable(model: nn.Module) -> Iterator[tuple[str, Loadable]]:
    return ((path, module) for path, module in model.named_modules() if hasattr(module, "load"))
