"""The shapes that steps are padded to, so that each is compiled once.  Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tgi_gaudi.settings import GaudiSettings

GROWTH = 4  #: from so many times the multiple on, lengths grow by a quarter


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a step may have."""

    decode_rows: tuple[int, ...]  #: sequences, ascending
    prefill_rows: int  #: sequences
    prompt_lengths: tuple[int, ...]  #: tokens of each, ascending

    def decode_rows_for(self, rows: int) -> int:
        """The rows of a decode of so many sequences."""
        return at_least(rows, self.decode_rows)

    def prompt_length_for(self, tokens: int) -> int:
        """The length that prompts of at most so many tokens are padded to."""
        return at_least(tokens, self.prompt_lengths)


def shapes_for(settings: GaudiSettings, *, batch_size: int, longest: int) -> Shapes:
    """Every shape of a device that runs `batch_size` sequences, and reads at most `longest` tokens of each at once."""
    return Shapes(
        decode_rows=multiples(settings.batch_bucket_size, batch_size),
        prefill_rows=min(settings.prefill_batch_bucket_size, batch_size),
        prompt_lengths=lengths(settings.pad_sequence_to_multiple_of, longest),
    )


def multiples(step: int, limit: int) -> tuple[int, ...]:
    """(8, 20) -> (8, 16, 20)"""
    return (*range(step, limit, step), limit)


def lengths(step: int, limit: int) -> tuple[int, ...]:
    """Multiples of `step` that reach `limit`: (128, 1000) -> (128, 256, 384, 512, 640, 768, 1024).

    Their distance grows with them, so that long limits have few.
    """
    if not step:
        return (limit,)
    last = up_to_multiple(limit, step)
    found = [min(step, last)]
    while found[-1] < last:
        further = max(step, found[-1] // GROWTH // step * step)
        found.append(min(found[-1] + further, last))
    return tuple(found)


def doubles(limit: int) -> tuple[int, ...]:
    """5 -> (1, 2, 4, 5)"""
    found = [1]
    while found[-1] < limit:
        found.append(min(2 * found[-1], limit))
    return tuple(found)


def up_to_multiple(value: int, step: int) -> int:
    """(130, 128) -> 256"""
    return -(-value // step) * step


def at_least(wanted: int, sizes: Sequence[int]) -> int:
    """The smallest of ascending sizes that does.

    Raises:
        ValueError: none does.
    """
    found = next((size for size in sizes if size >= wanted), None)
    if found is None:
        raise ValueError(f"{wanted} is more than the largest shape, {sizes[-1]}")
    return found
