"""One generation from submission to its end: detokenizes, finds stop strings, keeps the times."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from tgi_core.request import RequestOutput, TokenLogprob
from tgi_core.tokenizer.detokenizer import TextStream
from tgi_core.tokenizer.tokenizer import Tokenizer
from tgi_server.engine_client import EngineClient
from tgi_server.errors import GenerationFailed, IncompleteGeneration
from tgi_server.validation import Prepared


class Token(msgspec.Struct, gc=False):
    """A generated token as clients see it."""

    id: int
    text: str  #: what this token releases; texts of all tokens, joined, are the generated text
    logprob: float
    special: bool
    top: list[TokenLogprob]


@dataclass(slots=True)
class Timings:
    """time.monotonic() in seconds; 0 = not yet."""

    arrived_at: float
    validated_at: float = 0.0
    scheduled_at: float = 0.0
    first_token_at: float = 0.0
    ended_at: float = 0.0

    @property
    def total_s(self) -> float:
        """Arrival to last token."""
        return self.ended_at - self.arrived_at

    @property
    def validation_s(self) -> float:
        """Checking and tokenizing."""
        return self.validated_at - self.arrived_at

    @property
    def queue_s(self) -> float:
        """Submission to first step."""
        return max(0.0, self.scheduled_at - self.validated_at)

    @property
    def inference_s(self) -> float:
        """First step to last token."""
        return self.ended_at - (self.scheduled_at or self.validated_at)


class Generation:
    """A request that the engine runs.  Read `next` until `finish_reason` is set, then or before that `close`."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        prepared: Prepared,
        arrived_at: float,
        *,
        include_stop: bool,
    ) -> None:
        self.prepared = prepared
        self.timings = Timings(arrived_at, validated_at=time.monotonic())
        self._parts: list[str] = []
        self.generated_tokens = 0
        self.cached_tokens = 0
        self.seed: int | None = None
        self.prompt_logprobs: list[float | None] = []
        self.finish_reason = ""  #: "length" | "eos_token" | "stop_sequence" when it has ended
        self._client = client
        self._special_ids = tokenizer.special_ids
        self._text = TextStream(tokenizer, stop=prepared.params.stop, include_stop=include_stop)
        self.stream = client.submit(prepared.prompt_ids, prepared.params, cache_salt=prepared.cache_salt)

    @property
    def text(self) -> str:
        """Everything that was released so far."""
        return "".join(self._parts)

    @property
    def input_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prepared.prompt_ids)

    async def next(self) -> list[Token]:
        """The tokens that came since the last call; none after a keep-alive wake.

        Raises:
            GenerationFailed, Unavailable, IncompleteGeneration: the engine failed.
            ClientGone: the client left.
        """
        tokens: list[Token] = []
        for output in await self.stream.take():
            if not self.timings.scheduled_at:
                self._begin(output)
            self._read(output, tokens)
            if self.finish_reason:
                self.close()
                break
        return tokens

    def _begin(self, output: RequestOutput) -> None:
        now = time.monotonic()
        self.timings.scheduled_at = output.scheduled_at or now
        self.timings.first_token_at = now
        self.seed = output.seed
        self.cached_tokens = output.cached_tokens
        self.prompt_logprobs = output.prompt_logprobs or []

    def _read(self, output: RequestOutput, tokens: list[Token]) -> None:
        last = len(output.token_ids) - 1
        for i, token_id in enumerate(output.token_ids):
            text = self._text.add(token_id)
            if self._text.stopped is not None:
                self._end("stop_sequence")
            elif i == last and output.finish_reason in ("length", "eos_token", "stop_sequence"):
                text += self._text.flush()
                self._end("stop_sequence" if self._text.stopped is not None else output.finish_reason)
            self._parts.append(text)
            self.generated_tokens += 1
            top = output.top_logprobs[i] if output.top_logprobs else []
            tokens.append(Token(token_id, text, output.logprobs[i], token_id in self._special_ids, top))
            if self.finish_reason:
                return
        if output.finish_reason:
            self._fail(output)

    def _fail(self, output: RequestOutput) -> None:
        if output.finish_reason == "error":
            raise GenerationFailed(output.error)
        raise IncompleteGeneration

    def _end(self, reason: str) -> None:
        self.finish_reason = reason
        self.timings.ended_at = time.monotonic()

    def close(self) -> None:
        """Let go of the request; the engine stops it if it has not ended."""
        self._client.release(self.stream)
