"""The book of what a card would have compiled: one line for each capture of a module in a shape.

HABANA_STANDIN_BOOK names a file that the lines go to as well, for other processes to read.
"""

import os
from collections import Counter

captures = Counter()  # (module, signature) -> how often it was captured
replays = Counter()  # the same -> how often it was repeated
state = {"closed": False}  # whether a capture is an error


class LateCompilation(RuntimeError):
    """A shape that warm-up did not meet."""


def captured(module, signature):
    if state["closed"]:
        raise LateCompilation(f"{module} was not compiled for {signature}")
    captures[module, signature] += 1
    if path := os.environ.get("HABANA_STANDIN_BOOK"):
        with open(path, "a", encoding="utf-8") as book:
            book.write(f"{module} {signature}\n")


def replayed(module, signature):
    replays[module, signature] += 1


def close():
    """From now on a capture is an error."""
    state["closed"] = True


def reset():
    state["closed"] = False
    captures.clear()
    replays.clear()
