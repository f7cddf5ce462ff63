"""The bytes of tokens that are no text on their own: parts of a character."""

from __future__ import annotations

import re

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_NOT_TEXT = "\ufffd"  # what decoders write for a part of a character


def token_bytes(text: str, piece: str | None) -> bytes:
    """The bytes of a token, from its text and, if that is damaged, from its name in the vocabulary."""
    if _NOT_TEXT not in text or piece is None:
        return text.encode()
    if found := _BYTE_FALLBACK.fullmatch(piece):
        return bytes.fromhex(found[1])
    if all(char in _BYTES_OF_CHARS for char in piece):
        return bytes(_BYTES_OF_CHARS[char] for char in piece)
    return text.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """Bytes by the characters that stand for them in byte-level vocabularies, as GPT-2 chose them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES_OF_CHARS = _byte_level_alphabet()
