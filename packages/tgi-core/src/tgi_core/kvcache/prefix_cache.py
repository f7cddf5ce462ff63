"""Names for the content of a block: a chain of hashes, so that equal names mean equal prefixes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256

TOKEN_BYTES = array("I").itemsize


def chain_root(salt: str) -> bytes:
    """The key before the first block.  Prefixes are shared within one salt only (see CVE-2025-46570)."""
    return sha256(b"tgi.v0\0" + salt.encode()).digest()


def content_of(tokens: Sequence[int]) -> bytes:
    """TOKEN_BYTES of each."""
    return array("I", tokens).tobytes()


def chain_key(parent: bytes, content: bytes) -> bytes:
    """The key of a full block that holds tokens of this content after the prefix that `parent` names."""
    return sha256(parent + content).digest()
