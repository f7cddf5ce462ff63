"""A request while the scheduler owns it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tgi_core.request import Request

PRIORITY_LEAD = 1024  #: arrivals that one level of priority overtakes; finite, so nobody starves


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens known so far, and how many of them have their KV computed or on the way.

    `pending` tokens were sampled by steps whose results have not come back; their ids are still on the device.
    """

    request: Request
    seed: int
    arrival: int  #: counts requests; the order of fairness
    decoder_start_ids: tuple[int, ...] = ()  #: of an encoder-decoder; then the request's prompt is the source
    reserved: int = 0  #: tokens of KV cache before the sequence's own, in whole blocks: its source's
    tokens: list[int] = field(init=False)
    id: int = field(init=False)  #: the request's
    prompt_len: int = field(init=False)
    most_tokens: int = field(init=False)  #: that it may come to have
    #: lower runs earlier; fixed at arrival, so that a preempted sequence returns to its old place
    urgency: tuple[int, int] = field(init=False)
    slot: int = -1
    room: int = 0  #: tokens that its blocks hold, with those that are `reserved`
    computed: int = 0  #: tokens whose KV is in the cache once all submitted steps are done
    pending: int = 0
    cached_tokens: int = 0  #: prompt tokens answered by the prefix cache at first admission
    prompt_logprobs: list[float | None] | None = None
    preemptions: int = 0
    scheduled_at: float = 0.0
    reported: bool = False  #: its first output is out

    def __post_init__(self) -> None:
        self.tokens = list(self.decoder_start_ids or self.request.prompt_ids)
        self.id, self.prompt_len = self.request.id, len(self.tokens)
        self.most_tokens = self.prompt_len + self.request.params.max_new_tokens
        self.urgency = self.arrival + self.request.priority * PRIORITY_LEAD, self.arrival
        if self.request.params.prompt_logprobs:
            self.prompt_logprobs = [None]

    @property
    def is_running(self) -> bool:
        """It has a slot."""
        return self.slot >= 0

    @property
    def source(self) -> tuple[int, ...]:
        """What the encoder reads; empty for a decoder without one."""
        return tuple(self.request.prompt_ids) if self.decoder_start_ids else ()

    @property
    def max_len(self) -> int:
        """Tokens of KV cache it may reach: the worst case for memory.  The last token's KV is never needed."""
        return self.reserved + self.most_tokens

    @property
    def uncomputed(self) -> int:
        """Tokens, pending ones included, whose KV is not yet under way; 1 while decoding."""
        return len(self.tokens) + self.pending - self.computed

    @property
    def wants_step(self) -> bool:
        """False while its last allowed token is on the way."""
        return len(self.tokens) + self.pending < self.most_tokens
