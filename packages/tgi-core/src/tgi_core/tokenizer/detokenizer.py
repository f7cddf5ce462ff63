"""Text of a growing list of tokens, with stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from tgi_core.tokenizer.tokenizer import Tokenizer


class TextStream:
    """Turns the tokens of one sequence into text piece by piece.

    All pieces and the flush together are what decoding all tokens at once gives, up to the stop string that ends
    first.  Text is held back only while a character is incomplete, or could be the beginning of a stop string.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self.stopped: str | None = None  #: the stop string that was found; nothing comes after it
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._decoding = tokenizer.decoding(skip_special_tokens=skip_special_tokens)
        self._stops = StopStrings(stop, include_stop)
        self._ids: list[int] = []
        self._decoded = 0  # characters

    def add(self, token_id: int) -> str:
        """The text that is certain now, "" if there is none yet."""
        if self.stopped is not None:
            return ""
        self._ids.append(token_id)
        return self._pass_on(self._decoding.step(token_id))

    def flush(self) -> str:
        """The text that was held back; the sequence has ended."""
        if self.stopped is not None:
            return ""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip_special_tokens)
        text = self._pass_on(whole[self._decoded :])
        return text if self.stopped is not None else text + self._stops.release()

    def _pass_on(self, text: str) -> str:
        self._decoded += len(text)
        passed = self._stops.add(text) if text else ""
        self.stopped = self._stops.found
        return passed


class StopStrings:
    """Looks for strings in a text that comes in pieces."""

    def __init__(self, stops: Sequence[str], include_stop: bool) -> None:
        self.found: str | None = None
        self._stops = tuple(stop for stop in stops if stop)
        self._include_stop = include_stop
        self._held = ""

    def add(self, text: str) -> str:
        """What of the text so far is certain to stay; sets `found` at the first stop string.

        Of several, the one that ends first counts, and of those the longest: so how the text was cut into pieces
        does not matter.
        """
        if not self._stops:
            return text
        text = self._held + text
        matches = [(start + len(stop), -len(stop), stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            end, _, self.found = min(matches)
            self._held = ""
            return text[:end] if self._include_stop else text[: end - len(self.found)]
        held = max(_longest_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def release(self) -> str:
        """What is held back; nothing follows it."""
        held, self._held = self._held, ""
        return held


def _longest_overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text begin the stop string."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
