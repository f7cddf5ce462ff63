"""Decodes token ids that come one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import tokenizers
from tokenizers.decoders import DecodeStream

INCOMPLETE = "�"  # how decoders write a character whose bytes are not all there


class Decoding(Protocol):
    """Turns ids that come one by one into text."""

    def step(self, token_id: int) -> str:
        """The text that is certain now; "" while a character is incomplete."""


class StreamDecoding:
    """Leaves it to the `tokenizers` library."""

    def __init__(self, backend: tokenizers.Tokenizer, skip_special_tokens: bool) -> None:
        self._backend = backend
        self._stream: DecodeStream | None = DecodeStream(skip_special_tokens=skip_special_tokens)

    def step(self, token_id: int) -> str:
        """See `Decoding.step`; a decoder that takes back what it said falls silent, and the rest comes at the end."""
        if self._stream is None:
            return ""
        try:
            return self._stream.step(self._backend, token_id) or ""
        except Exception:  # the library raises plain Exception
            self._stream = None
            return ""


class WindowDecoding:
    """Decodes the newest tokens with and without the last one; the difference is new.

    Where unknown characters are spelled in byte tokens, one invalid byte changes how the whole run of them is
    decoded, so nothing of a run is certain before it ends.

    Args:
        decode: ids to text.
        is_silent: whether an id gives no text at all, wherever it stands; it does not end a run either.
        byte_ids: tokens that stand for one byte each.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        is_silent: Callable[[int], bool],
        byte_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._decode = decode
        self._is_silent = is_silent
        self._byte_ids = byte_ids
        self._ids: list[int] = []
        self._told = 0  # ids whose text is out

    def step(self, token_id: int) -> str:
        """See `Decoding.step`."""
        if self._is_silent(token_id):
            return ""
        self._ids.append(token_id)
        if token_id in self._byte_ids:
            return ""
        before = self._decode(self._ids[: self._told])
        now = self._decode(self._ids)
        if len(now) <= len(before) or now.endswith(INCOMPLETE):
            return ""
        self._ids = self._ids[self._told :]
        self._told = len(self._ids)
        return now[len(before) :]


def byte_tokens(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Ids of the tokens that stand for one byte each, as in SentencePiece vocabularies: "<0x0A>"."""
    ids = (backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token_id for token_id in ids if token_id is not None)
