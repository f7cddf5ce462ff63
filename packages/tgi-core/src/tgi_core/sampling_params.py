"""How the tokens of one request are chosen and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """A constraint on the generated text."""

    kind: str  #: "json_schema" | "regex"
    value: str  #: the schema as JSON text, or the pattern


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything a request may say about sampling.  The defaults are greedy decoding without penalties.

    Checked where a request enters (`tgi_server.validation`, `Engine.add`); the sampler trusts them.
    """

    do_sample: bool = False  #: False: greedy, whatever temperature says
    temperature: float = 1.0  #: > 0
    top_k: int = 0  #: 0 = off
    top_p: float = 1.0  #: (0, 1]; 1 = off
    min_p: float = 0.0  #: [0, 1); 0 = off
    typical_p: float = 1.0  #: (0, 1]; 1 = off
    repetition_penalty: float = 1.0  #: > 0; over prompt and output, as in CTRL (arXiv 1909.05858)
    frequency_penalty: float = 0.0  #: [-2, 2]; per occurrence in the output, as OpenAI defines it
    presence_penalty: float = 0.0  #: [-2, 2]; once per token that occurred in the output
    logit_bias: dict[int, float] = {}  #: token id -> added to its logit
    watermark: bool = False  #: green-list watermark (arXiv 2301.10226)
    grammar: Grammar | None = None
    seed: int | None = None  #: 0 .. 2**64-1; None: the engine draws one
    max_new_tokens: int = 20  #: >= 1
    min_new_tokens: int = 0  #: EOS and stop ids are masked before that many tokens
    stop: tuple[str, ...] = ()  #: stop strings; looked for by whoever detokenizes
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False  #: somebody reads the tokens' log-probabilities; they come unasked where they are known
    top_n_tokens: int = 0  #: so many alternatives with log-probabilities per token
    prompt_logprobs: bool = False  #: log-probability of every prompt token; skips the prefix cache
    extra: dict[str, Any] = {}  #: fields of plugins' logits processors, as JSON values


DEFAULTS = SamplingParams()
#: fields that mean nothing where the most likely token is taken
SAMPLING_ONLY = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p", "seed"})


def why_refused(params: SamplingParams, refused: Mapping[str, str], max_top_k: int | None) -> str:
    """Why a device has no means for these; "" if it has.

    Args:
        refused, max_top_k: see `Capabilities.refused_parameters` and `Capabilities.max_top_k`.
    """
    for name, why in refused.items():
        counts = params.do_sample or name not in SAMPLING_ONLY
        if counts and getattr(params, name) != getattr(DEFAULTS, name):
            return f"`{name}` is not supported here: {why}"
    if max_top_k is not None and params.do_sample and params.top_k > max_top_k:
        return f"`top_k` must be <= {max_top_k} on this device. Given: {params.top_k}"
    return ""
