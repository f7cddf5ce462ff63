"""Galactica reads molecules and proteins letter by letter (arXiv 2211.09085, section 3.1).

Its tokenizer removes a marker from the text wherever it stands, so that nothing is merged across; whoever writes the
text puts the marker between the letters of a sequence.
"""

from __future__ import annotations

import re

import tokenizers

MARKER = "SPL1T-TH1S-Pl3A5E"
SEQUENCE = re.compile(r"(\[START_(DNA|SMILES|I_SMILES|AMINO)])(.*?)(\[END_\2])")


def splits_sequences(backend: tokenizers.Tokenizer) -> bool:
    """Whether this tokenizer is one of Galactica's."""
    return backend.pre_tokenizer is not None and MARKER in repr(backend.pre_tokenizer)


def mark_sequences(text: str) -> tuple[str, list[int]]:
    """The text with markers before each letter of a sequence and behind the last, and where in `text` each character
    of it and its end come from."""
    parts: list[str] = []
    origin: list[int] = []

    def take(start: int, stop: int) -> None:
        parts.append(text[start:stop])
        origin.extend(range(start, stop))

    def mark(at: int) -> None:
        parts.append(MARKER)
        origin.extend([at] * len(MARKER))

    done = 0
    for match in SEQUENCE.finditer(text):
        first, last = match.span(3)
        take(done, first)
        for letter in range(first, last):
            mark(letter)
            take(letter, letter + 1)
        mark(last)
        done = last
    take(done, len(text))
    return "".join(parts), [*origin, len(text)]
