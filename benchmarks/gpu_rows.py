"""What is measured on a GPU, for us and for others: imports neither, so that any interpreter can."""

from __future__ import annotations

import random
from typing import NamedTuple

BATCHES = (1, 8, 32, 128, 256, 512)  #: of decodes
FIRST, STEPS = 32, 128  #: tokens of their prompts, and of their answers
SKIPPED = 16  #: steps of an answer before the clock starts
LONG = 8000  #: tokens of a prompt
EACH = 4096  #: tokens of several prompts
CACHED, TAIL = 7900, 100  #: tokens of a prompt that were there before, and that were not
SAMPLED = {"temperature": 0.8, "top_p": 0.9}
LOWEST, HIGHEST = 3, 30000  #: ids in prompts, which all vocabularies have


class Load(NamedTuple):
    """Requests that all come at once."""

    count: int
    prompt: int
    output: int
    sampled: bool = False

    def __str__(self) -> str:
        kind = "top-p" if self.sampled else "greedy"
        return f"{self.count} requests of {self.prompt} + {self.output}, {kind}"


LOADS = (Load(256, 512, 128), Load(256, 512, 128, sampled=True), Load(512, 128, 128), Load(64, 2048, 256))


def decode_row(batch: int) -> str:
    """Milliseconds of a step."""
    return f"decode step, batch {batch}, context {FIRST}-{FIRST + STEPS}"


def long_decode_row(tokens: int) -> str:
    """The same, of one request after a long prompt."""
    return f"decode step, batch 1, context {tokens}"


def prompts_of_first_tokens(most: int) -> list[int]:
    """Lengths, of at most so many tokens."""
    return sorted({128, min(512, most), min(LONG, most)})


def first_token_row(tokens: int) -> str:
    """Milliseconds to the first token."""
    return f"time to first token, {tokens}"


def cached_row() -> str:
    """The same, where the beginning of the prompt was there before."""
    return f"time to first token, {CACHED} cached + {TAIL}"


def prefill_row(tokens: int) -> str:
    """Tokens of prompts per second."""
    return f"prefill, 8 of {tokens}"


def prompt_ids(number: int, tokens: int) -> list[int]:
    """The `number`-th prompt."""
    generator = random.Random(number)
    return [generator.randrange(LOWEST, HIGHEST) for _ in range(tokens)]
