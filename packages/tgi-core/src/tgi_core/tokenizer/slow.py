"""Tokenizers without a tokenizer.json: transformers converts them, or runs them in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tgi_core.errors import TokenizerError
from tgi_core.tokenizer.chat_template import ChatTemplates
from tgi_core.tokenizer.decoding import Decoding
from tgi_core.tokenizer.tokenizer import Tokenizer, TokenSpan
from tgi_core.tokenizer.tokenizer_config import read_tokenizer_config


def load_through_transformers(
    folder: Path,
    trust_remote_code: bool,
    special_tokens: Mapping[str, str],
    templates: Mapping[str, str],
    end_ids: Sequence[int],
) -> Tokenizer:
    """A fast tokenizer if transformers can convert this one, else one that runs in Python.

    Raises:
        TokenizerError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # anything may go wrong in a tokenizer's own code
        own = read_tokenizer_config(folder, None).get("auto_map") and not trust_remote_code
        hint = "; it comes with code of its own: read it, and pass --trust-remote-code to run it" if own else ""
        raise TokenizerError(
            f"{folder} has no tokenizer.json and transformers cannot load it: {error}{hint}"
        ) from error
    special_tokens = {
        name: token for name, token in loaded.special_tokens_map.items() if isinstance(token, str)
    } | dict(special_tokens)
    backend = getattr(loaded, "backend_tokenizer", None)
    if getattr(loaded, "is_fast", False) and backend is not None:
        return Tokenizer(backend, special_tokens=special_tokens, templates=templates, end_ids=end_ids)
    return SlowTokenizer(loaded, special_tokens=special_tokens, templates=templates, end_ids=end_ids)


class SlowTokenizer(Tokenizer):
    """A tokenizer that runs in Python, inside transformers."""

    is_fast = False

    def __init__(
        self,
        slow: Any,
        *,
        special_tokens: Mapping[str, str],
        templates: Mapping[str, str],
        end_ids: Sequence[int],
    ) -> None:
        self.slow = slow
        self.templates = ChatTemplates(templates, special_tokens)
        self.bos_token, self.eos_token = slow.bos_token, slow.eos_token
        own = [] if slow.eos_token_id is None else [int(slow.eos_token_id)]
        self.eos_token_ids = tuple(dict.fromkeys([*end_ids, *own]))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text."""
        return [int(token_id) for token_id in self.slow.encode(text, add_special_tokens=add_special_tokens)]

    def encode_with_offsets(self, text: str, *, add_special_tokens: bool = True) -> list[TokenSpan]:
        """The tokens of a text; such tokenizers do not know their places, so text and offsets are empty."""
        return [TokenSpan(i, "", 0, 0) for i in self.encode(text, add_special_tokens=add_special_tokens)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return str(
            self.slow.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        )

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary."""
        token_id = self.slow.convert_tokens_to_ids(token)
        return None if token_id is None else int(token_id)

    def decoding(self, *, skip_special_tokens: bool = True) -> Decoding:
        """Decode ids that come one by one."""
        return self._window_decoding(skip_special_tokens, frozenset())

    def _vocab_size(self) -> int:
        return len(self.slow)

    def _special_ids(self) -> frozenset[int]:
        return frozenset(int(token_id) for token_id in self.slow.all_special_ids)
