"""From what a client wishes to what the engine runs: every limit, in TGI's order and words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from tgi_core.errors import TGIError
from tgi_core.plugins.specs import JSON_TYPES
from tgi_core.sampling_params import SamplingParams, why_refused
from tgi_core.tokenizer.tokenizer import Tokenizer
from tgi_server.errors import InvalidInput

CHUNK = 1024  # TGI checks max_new_tokens against the room left in pieces of so many tokens
MAX_STOP_BYTES = 1024
MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKEN_IDS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """One generation as a client asks for it, whatever the route.  None: not given."""

    inputs: str | list[int]
    add_special_tokens: bool = True
    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] = field(default_factory=dict)
    truncate: int | None = None
    watermark: bool = False
    prompt_logprobs: bool = False
    seed: int | None = None
    logprobs: bool = False  #: the answer has the log-probabilities of its tokens, as its client asked for
    top_n_tokens: int | None = None
    grammar: dict[str, Any] | None = None
    adapter_id: str | None = None
    cache_salt: str = ""
    extra: dict[str, Any] = field(default_factory=dict)  #: fields that a plugin may have declared


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask of this server and model."""

    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int
    max_total_tokens: int
    vocab_size: int
    extra_parameters: dict[str, str] = field(default_factory=dict)  #: declared by plugins: name -> JSON type
    max_output_tokens: int | None = None  #: that a decoder with positions of its own may write; None = any
    refused_parameters: dict[str, str] = field(default_factory=dict)  #: see the device's `Capabilities`
    max_top_k: int | None = None  #: see the same


@dataclass(frozen=True, slots=True)
class Prepared:
    """A generation that the engine can run."""

    prompt_ids: list[int]
    params: SamplingParams
    characters: int  #: of the prompt text, 0 for a prompt of token ids
    cache_salt: str = ""


def check_best_of(best_of: int | None, limits: Limits) -> None:
    """Refuse a `best_of` that no permit should be taken for."""
    wanted = best_of or 1
    if wanted > 1 and limits.max_best_of == 1:
        raise InvalidInput("`best_of` != 1 is not allowed for this endpoint")
    if wanted > limits.max_best_of:
        raise InvalidInput(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {wanted}")


def check_stream(best_of: int | None, decoder_input_details: bool) -> None:
    """Refuse what a stream cannot carry."""
    if best_of is not None and best_of != 1:
        raise InvalidInput("`best_of` != 1 is not supported when streaming tokens")
    if decoder_input_details:
        raise InvalidInput("`decoder_input_details` == true is not supported when streaming tokens")


def _samples(w: Wishes) -> bool:
    return w.do_sample or any(v is not None for v in (w.temperature, w.top_k, w.top_p, w.typical_p))


def _rules(w: Wishes, limits: Limits) -> Iterator[tuple[bool, str]]:
    """(broken?, message) in TGI's order, each computed only when the ones before hold."""
    best_of = w.best_of or 1
    vocab = limits.vocab_size
    yield best_of > 1 and not _samples(w), "you must use sampling when `best_of` is > 1"
    yield w.temperature is not None and w.temperature <= 0, "`temperature` must be strictly positive"
    yield (
        w.repetition_penalty is not None and w.repetition_penalty <= 0,
        "`repetition_penalty` must be strictly positive",
    )
    yield _outside(w.frequency_penalty, -2, 2), "`frequency_penalty` must be >= -2.0 and <= 2.0"
    yield _outside(w.presence_penalty, -2, 2), "`presence_penalty` must be >= -2.0 and <= 2.0"
    yield w.top_p is not None and not 0 < w.top_p < 1, "`top_p` must be > 0.0 and < 1.0"
    yield w.typical_p is not None and not 0 < w.typical_p < 1, "`typical_p` must be > 0.0 and < 1.0"
    yield w.top_k is not None and w.top_k <= 0, "`top_k` must be strictly positive"
    yield w.min_p is not None and not 0 <= w.min_p < 1, "`min_p` must be >= 0.0 and < 1.0"
    yield w.max_new_tokens == 0, "`max_new_tokens` must be strictly positive"
    yield (
        len(w.stop) > limits.max_stop_sequences,
        f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(w.stop)}",
    )
    yield (
        any(len(stop.encode()) > MAX_STOP_BYTES for stop in w.stop),
        f"`stop` sequences must have at most {MAX_STOP_BYTES} bytes each",
    )
    yield w.seed is not None and best_of > 1, "`seed` must not be set when `best_of` > 1"
    yield (
        (w.top_n_tokens or 0) > limits.max_top_n_tokens,
        f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {w.top_n_tokens}",
    )
    yield (
        len(w.logit_bias) > MAX_LOGIT_BIASES,
        f"`logit_bias` supports up to {MAX_LOGIT_BIASES} tokens. Given: {len(w.logit_bias)}",
    )
    yield (
        any(_outside(bias, -100, 100) for bias in w.logit_bias.values()),
        "`logit_bias` values must be >= -100.0 and <= 100.0",
    )
    yield any(not 0 <= i < vocab for i in w.logit_bias), f"`logit_bias` token ids must be >= 0 and < {vocab}"
    yield (
        len(w.stop_token_ids) > MAX_STOP_TOKEN_IDS,
        f"`stop_token_ids` supports up to {MAX_STOP_TOKEN_IDS} ids. Given: {len(w.stop_token_ids)}",
    )
    yield any(not 0 <= i < vocab for i in w.stop_token_ids), f"`stop_token_ids` must be >= 0 and < {vocab}"
    yield not w.inputs, "`inputs` cannot be empty"
    yield (
        w.truncate is not None and not 0 < w.truncate <= limits.max_input_tokens,
        f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {w.truncate}",
    )
    yield (
        isinstance(w.inputs, list) and any(not 0 <= i < vocab for i in w.inputs),
        f"token ids of `inputs` must be >= 0 and < {vocab}",
    )
    for name, kind in limits.extra_parameters.items():
        yield name in w.extra and not _is_json(w.extra[name], kind), f"`{name}` must be of JSON type {kind}"


def _param(message: str) -> str | None:
    """The field that a message begins with, if it has this name on all routes."""
    found = re.match(r"`(\w+)`", message)
    return found[1] if found and found[1] not in ("inputs", "max_new_tokens", "top_n_tokens") else None


def _is_json(value: object, kind: str) -> bool:
    return isinstance(value, JSON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _outside(value: float | None, low: float, high: float) -> bool:
    return value is not None and not low <= value <= high


class Validator:
    """Checks wishes and tokenizes prompts, away from the event loop."""

    def __init__(self, limits: Limits, tokenizer: Tokenizer, pool: Executor) -> None:
        self.limits = limits
        self._tokenizer = tokenizer
        self._pool = pool

    async def prepare(self, wishes: Wishes) -> Prepared:
        """Check everything.

        Raises:
            InvalidInput: a rule or a limit is broken; nothing was scheduled.
        """
        for broken, message in _rules(wishes, self.limits):
            if broken:
                raise InvalidInput(message, param=_param(message))
        ids = await self._prompt_ids(wishes)
        max_new_tokens = self._room(len(ids), wishes.max_new_tokens)
        if wishes.adapter_id:
            raise InvalidInput("`adapter_id` names an adapter, and this server has none loaded", param="adapter_id")
        if wishes.grammar is not None:
            raise InvalidInput("grammar is not supported")
        characters = len(wishes.inputs) if isinstance(wishes.inputs, str) else 0
        params, limits = _params(wishes, max_new_tokens, self.limits), self.limits
        if refusal := why_refused(params, limits.refused_parameters, limits.max_top_k):
            raise InvalidInput(refusal)
        return Prepared(ids, params, characters, wishes.cache_salt)

    async def _prompt_ids(self, wishes: Wishes) -> list[int]:
        if isinstance(wishes.inputs, list):
            ids = wishes.inputs
        else:
            ids = await self.encode(wishes.inputs, wishes.add_special_tokens)
        if not ids:
            raise InvalidInput("`inputs` cannot be empty")
        return ids if wishes.truncate is None else self._truncate(ids, wishes.truncate)

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text.

        Raises:
            InvalidInput: the tokenizer refuses it.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, self._encode, text, add_special_tokens)
        except TGIError as error:
            raise InvalidInput(f"tokenizer error {error}") from error

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _truncate(self, ids: list[int], length: int) -> list[int]:
        """Keep the end of the prompt, and the special token that it begins with."""
        if len(ids) <= length:
            return ids
        if ids[0] in self._tokenizer.special_ids and length > 1:
            return [ids[0], *ids[len(ids) - length + 1 :]]
        return ids[len(ids) - length :]

    def _room(self, input_length: int, wanted: int | None) -> int:
        """How many tokens may be generated after so many of the prompt."""
        limits = self.limits
        most = limits.max_output_tokens or limits.max_total_tokens
        if wanted is not None and wanted > most and limits.max_output_tokens is not None:
            raise InvalidInput(f"`max_new_tokens` must be <= {most}. Given: {wanted}")
        left = min(limits.max_total_tokens - input_length, most)
        needed = min(CHUNK, left if wanted is None else wanted)
        if input_length + max(needed, 0) > limits.max_total_tokens:
            raise InvalidInput(
                f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
                f"Given: {input_length} `inputs` tokens and {max(needed, 0)} `max_new_tokens`"
            )
        if input_length > limits.max_input_tokens:
            raise InvalidInput(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {input_length}")
        return left if wanted is None else min(wanted, left)


def _params(w: Wishes, max_new_tokens: int, limits: Limits) -> SamplingParams:
    warps = w.temperature not in (None, 1.0) or any(v is not None for v in (w.top_k, w.top_p, w.typical_p))
    return SamplingParams(
        do_sample=w.do_sample or warps,
        temperature=1.0 if w.temperature is None else w.temperature,
        top_k=w.top_k or 0,
        top_p=1.0 if w.top_p is None else w.top_p,
        min_p=w.min_p or 0.0,
        typical_p=1.0 if w.typical_p is None else w.typical_p,
        repetition_penalty=1.0 if w.repetition_penalty is None else w.repetition_penalty,
        frequency_penalty=w.frequency_penalty or 0.0,
        presence_penalty=w.presence_penalty or 0.0,
        logit_bias=w.logit_bias,
        watermark=w.watermark,
        seed=w.seed,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min(w.min_new_tokens, max_new_tokens),
        stop=tuple(s for s in w.stop if s),
        stop_token_ids=w.stop_token_ids,
        ignore_eos=w.ignore_eos,
        logprobs=w.logprobs or (w.best_of or 1) > 1,  # by which the best is found
        top_n_tokens=w.top_n_tokens or 0,
        prompt_logprobs=w.prompt_logprobs,
        extra={name: w.extra[name] for name in limits.extra_parameters if name in w.extra},
    )
