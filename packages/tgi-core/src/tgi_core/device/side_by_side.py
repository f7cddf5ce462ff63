"""Small tensors in the same memory, which are copied at once: a copy takes longer to begin than to be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOST_BYTES = 1 << 16  #: of one copy of several, with what lies between them


class Piece(NamedTuple):
    """What is to be copied at once."""

    source: Tensor
    firsts: dict[int, int]  #: number of a tensor that lies in it -> its first byte there


def pieces_of(tensors: Sequence[Tensor]) -> list[Piece]:
    """Of tensors on one device; each lies in one piece."""
    by_memory: dict[int, list[int]] = {}
    for number, tensor in enumerate(tensors):
        by_memory.setdefault(tensor.untyped_storage().data_ptr(), []).append(number)
    return [piece for numbers in by_memory.values() for piece in _pieces(tensors, numbers)]


def _pieces(tensors: Sequence[Tensor], numbers: list[int]) -> list[Piece]:
    """Of tensors in the same memory."""
    places = {number: int(tensors[number].storage_offset()) * tensors[number].itemsize for number in numbers}
    begin = min(places.values())
    size = max(place + tensors[number].nbytes for number, place in places.items()) - begin
    firsts = {number: place - begin for number, place in places.items()}
    fits = all(tensors[n].is_contiguous() and first % tensors[n].itemsize == 0 for n, first in firsts.items())
    if len(numbers) == 1 or size > MOST_BYTES or not fits:
        return [Piece(tensors[number], {number: 0}) for number in numbers]
    memory = tensors[numbers[0]].untyped_storage()
    source = torch.empty(0, dtype=torch.uint8, device=memory.device)
    return [Piece(source.set_(memory, begin, (size,), (1,)), firsts)]


def tensor_in(copy: Tensor, first: int, like: Tensor) -> Tensor:
    """A tensor in the copy of a piece, from its first byte there on."""
    if copy.shape == like.shape and copy.dtype == like.dtype:
        return copy
    return copy[first : first + like.nbytes].view(like.dtype).view(like.shape)
