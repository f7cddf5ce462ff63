"""The numbers that bound a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tgi_core.errors import InvalidRequest
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams, why_refused

#: what the sampler can compute with: (is kept, message); a NaN keeps no rule
PARAMETER_RULES: tuple[tuple[Callable[[SamplingParams], bool], str], ...] = (
    (lambda p: 0 < p.temperature < math.inf, "`temperature` must be strictly positive"),
    (lambda p: 0 <= p.top_k < 2**32, "`top_k` must be >= 0 and < 2**32"),
    (lambda p: 0 < p.top_p <= 1, "`top_p` must be > 0.0 and <= 1.0"),
    (lambda p: 0 <= p.min_p < 1, "`min_p` must be >= 0.0 and < 1.0"),
    (lambda p: 0 < p.typical_p <= 1, "`typical_p` must be > 0.0 and <= 1.0"),
    (lambda p: 0 < p.repetition_penalty < math.inf, "`repetition_penalty` must be strictly positive"),
    (lambda p: -2 <= p.frequency_penalty <= 2, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    (lambda p: -2 <= p.presence_penalty <= 2, "`presence_penalty` must be >= -2.0 and <= 2.0"),
    (lambda p: all(-100 <= bias <= 100 for bias in p.logit_bias.values()), "`logit_bias` must be >= -100 and <= 100"),
    (lambda p: p.seed is None or 0 <= p.seed < 2**64, "`seed` must be >= 0 and < 2**64"),
    (lambda p: p.max_new_tokens >= 1, "`max_new_tokens` must be strictly positive"),
    (lambda p: p.min_new_tokens >= 0, "`min_new_tokens` must be >= 0"),
    (lambda p: p.top_n_tokens >= 0, "`top_n_tokens` must be >= 0"),
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Resolved once at start; all in tokens or sequences."""

    max_input_tokens: int
    max_total_tokens: int
    max_batch_prefill_tokens: int
    max_batch_size: int
    vocab_size: int
    max_output_tokens: int | None = None  #: that a decoder with positions of its own may write; None = any
    #: see `Capabilities`
    refused_parameters: Mapping[str, str] = field(default_factory=dict, hash=False)
    max_top_k: int | None = None

    def check(self, request: Request) -> None:
        """Refuse what can never run.

        Raises:
            InvalidRequest: with the numbers in the words of TGI's router.
        """
        given, new = len(request.prompt_ids), request.params.max_new_tokens
        if not given:
            raise InvalidRequest("`inputs` cannot be empty")
        for is_kept, message in PARAMETER_RULES:
            if not is_kept(request.params):
                raise InvalidRequest(message)
        if refusal := why_refused(request.params, self.refused_parameters, self.max_top_k):
            raise InvalidRequest(refusal)
        if given > self.max_input_tokens:
            raise InvalidRequest(f"`inputs` must have less than {self.max_input_tokens} tokens. Given: {given}")
        if given + new > self.max_total_tokens:
            raise InvalidRequest(
                f"`inputs` tokens + `max_new_tokens` must be <= {self.max_total_tokens}. "
                f"Given: {given} `inputs` tokens and {new} `max_new_tokens`"
            )
        if self.max_output_tokens is not None and new > self.max_output_tokens:
            raise InvalidRequest(f"`max_new_tokens` must be <= {self.max_output_tokens}. Given: {new}")
        named = (*request.prompt_ids, *request.params.logit_bias, *request.params.stop_token_ids)
        wrong = next((token for token in named if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(f"token id {wrong} is not in the vocabulary of {self.vocab_size} tokens")
