"""A request as the engine sees it: token ids and parameters, no text."""

from __future__ import annotations

import msgspec

from tgi_core.sampling_params import SamplingParams

FINISH_REASONS = ("length", "eos_token", "stop_sequence", "abort", "error")


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One prompt to continue.  `id` is unique for the life of the engine and made by its caller, never by a client."""

    id: int
    prompt_ids: list[int]  #: of an encoder-decoder: the source, which its encoder reads
    params: SamplingParams = SamplingParams()
    priority: int = 0  #: lower runs earlier; a lead of `PRIORITY_LEAD` arrivals a level, so nobody starves
    cache_salt: str = ""  #: requests share cached prefixes only with requests of the same salt
    arrived_at: float = 0.0  #: time.monotonic() in seconds; the clock is the host's, so processes may compare


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token id and its natural log-probability."""

    id: int
    logprob: float


class RequestOutput(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What one step brought for one request."""

    request_id: int
    token_ids: list[int] = []  #: new tokens, EOS included
    logprobs: list[float] = []  #: one per new token; NaN where the device gives none
    top_logprobs: list[list[TokenLogprob]] = []  #: one list per new token, best first; empty unless asked for
    prompt_logprobs: list[float | None] | None = None  #: on the first output; the first token has none
    finish_reason: str = ""  #: "" while running, else one of FINISH_REASONS
    error: str = ""  #: for a person, when finish_reason is "error"
    cached_tokens: int = 0  #: prompt tokens that the prefix cache answered
    scheduled_at: float = 0.0  #: time.monotonic() of the first step that held this request; on the first output
    seed: int | None = None  #: the seed used; None when greedy; on the first output
