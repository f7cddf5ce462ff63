"""The numbers that bound a batch."""

from __future__ import annotations

from dataclasses import dataclass

from tgi_core.errors import InvalidRequest
from tgi_core.request import Request


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Resolved once at start; all in tokens or sequences."""

    max_input_tokens: int
    max_total_tokens: int
    max_batch_prefill_tokens: int
    max_batch_size: int
    vocab_size: int

    def check(self, request: Request) -> None:
        """Refuse what can never run.

        Raises:
            InvalidRequest: with the numbers in the words of TGI's router.
        """
        given, new = len(request.prompt_ids), request.params.max_new_tokens
        if not given:
            raise InvalidRequest("`inputs` cannot be empty")
        if new < 1:
            raise InvalidRequest("`max_new_tokens` must be strictly positive")
        if given > self.max_input_tokens:
            raise InvalidRequest(f"`inputs` must have less than {self.max_input_tokens} tokens. Given: {given}")
        if given + new > self.max_total_tokens:
            raise InvalidRequest(
                f"`inputs` tokens + `max_new_tokens` must be <= {self.max_total_tokens}. "
                f"Given: {given} `inputs` tokens and {new} `max_new_tokens`"
            )
        named = (*request.prompt_ids, *request.params.logit_bias, *request.params.stop_token_ids)
        wrong = next((token for token in named if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(f"token id {wrong} is not in the vocabulary of {self.vocab_size} tokens")
