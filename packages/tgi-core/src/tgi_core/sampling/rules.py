"""Tokens that mean something to the model itself: that end its text, or that it forces or forbids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenRules:
    """See the fields of like names in transformers' `GenerationConfig`."""

    eos: tuple[int, ...] = ()  #: any of them ends a text
    forced_bos: int | None = None  #: after a single token, which only a decoder's start token is
    forced_eos: int | None = None  #: the last token that a request allows
    suppressed: tuple[int, ...] = ()
    suppressed_at_begin: tuple[int, ...] = ()  #: as first token of the output, or second after a forced one


def token_rules(configs: Iterable[Mapping[str, Any]], eos: tuple[int, ...], vocab_size: int) -> TokenRules:
    """The rules of a model.

    Args:
        configs: generation_config.json, then config.json, where older models keep these fields; the first that has a
            field decides.
        vocab_size: ids outside the vocabulary mean nothing.
    """
    configs = tuple(configs)

    def ids(*names: str) -> tuple[int, ...]:
        found: list[Any] = []
        for name in names:
            value = next((config[name] for config in configs if config.get(name) is not None), None)
            values = value if isinstance(value, list) else [value]
            found += [item[0] if isinstance(item, list) and len(item) == 1 else item for item in values]
        return tuple(dict.fromkeys(i for i in found if type(i) is int and 0 <= i < vocab_size))

    return TokenRules(
        eos=eos,
        forced_bos=next(iter(ids("forced_bos_token_id")), None),
        forced_eos=next(iter(ids("forced_eos_token_id")), None),
        suppressed=ids("suppress_tokens", "bad_words_ids"),
        suppressed_at_begin=ids("begin_suppress_tokens"),
    )
