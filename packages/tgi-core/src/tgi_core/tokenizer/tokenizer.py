"""Text to token ids and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, processors

from tgi_core.errors import TokenizerError
from tgi_core.tokenizer.chat_template import ChatTemplates
from tgi_core.tokenizer.decoding import Decoding, StreamDecoding, WindowDecoding, byte_tokens
from tgi_core.tokenizer.galactica import mark_sequences, splits_sequences
from tgi_core.tokenizer.sentencepiece_bpe import load_sentencepiece_bpe
from tgi_core.tokenizer.tokenizer_config import (
    chat_templates,
    end_ids,
    extra_special_tokens,
    named_tokens,
    read_tokenizer_config,
)

if TYPE_CHECKING:
    from tgi_core.weights.source import ModelFiles

log = logging.getLogger(__name__)

LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")  # their add_bos_token overrules tokenizer.json


@dataclass(frozen=True)
class TokenSpan:
    """A token and the part of the text that it stands for."""

    id: int
    text: str  #: "" for special tokens that were added
    start: int  #: bytes of UTF-8
    stop: int


class Tokenizer:
    """A fast tokenizer (tokenizer.json)."""

    is_fast = True

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        templates: Mapping[str, str] | None = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        self.backend = backend
        backend.no_truncation()
        backend.no_padding()
        special_tokens = dict(special_tokens or {})
        self.templates = ChatTemplates(templates or {}, special_tokens)
        self.bos_token: str | None = special_tokens.get("bos_token")
        self.eos_token: str | None = special_tokens.get("eos_token")
        own = self.token_to_id(self.eos_token) if self.eos_token is not None else None
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys([*end_ids, *([] if own is None else [own])]))

    @property
    def chat_template(self) -> str | None:
        """The template that is used when none is named, None if the model has none."""
        return self.templates.source()

    @cached_property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return self._vocab_size()

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that stand for no text of their own: start, end, roles of a chat."""
        return self._special_ids()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text.

        Raises:
            TokenizerError: the text holds half a character (a lone surrogate).
        """
        if self._splits_sequences:
            text, _ = mark_sequences(text)
        return list(self._encode(text, add_special_tokens).ids)

    def encode_with_offsets(self, text: str, *, add_special_tokens: bool = True) -> list[TokenSpan]:
        """The tokens of a text, each with its place in it.

        Raises:
            TokenizerError: the text holds half a character (a lone surrogate).
        """
        marked, origin = mark_sequences(text) if self._splits_sequences else (text, range(len(text) + 1))
        encoding = self._encode(marked, add_special_tokens)
        byte_at = [0, *accumulate(len(character.encode()) for character in text)]
        return [
            TokenSpan(token_id, "", 0, 0)
            if is_added
            else TokenSpan(token_id, text[origin[start] : origin[stop]], byte_at[origin[start]], byte_at[origin[stop]])
            for token_id, (start, stop), is_added in zip(
                encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True
            )
        ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids outside the vocabulary give nothing."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str:
        """The text that this token adds in the middle of a text, special tokens by name."""
        anchor, anchor_text = self._anchor
        if token_id in self.special_ids or not anchor:
            return self.decode([token_id], skip_special_tokens=False)
        text = self.decode([*anchor, token_id], skip_special_tokens=False)
        return text[len(anchor_text) :] if text.startswith(anchor_text) else self.decode([token_id])

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary."""
        return self.backend.token_to_id(token)

    def decoding(self, *, skip_special_tokens: bool = True) -> Decoding:
        """Decode ids that come one by one."""
        if self._byte_ids:
            return self._window_decoding(skip_special_tokens, self._byte_ids)
        return StreamDecoding(self.backend, skip_special_tokens)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_name: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for a chat; encode it with add_special_tokens=False.

        Raises:
            ChatTemplateError: the model has no such template, or it refuses these messages.
        """
        return self.templates.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            template_name=template_name,
            variables=variables,
        )

    def _encode(self, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            raise TokenizerError("the text is not valid Unicode: it holds half a character") from error

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        """A text to put before a token, so that a space at its start is not taken for the start of a text."""
        ids = self.encode("a", add_special_tokens=False)
        return ids, self.decode(ids)

    def _window_decoding(self, skip_special_tokens: bool, byte_ids: frozenset[int]) -> WindowDecoding:
        def is_silent(token_id: int) -> bool:
            return token_id >= self.vocab_size or (skip_special_tokens and token_id in self.special_ids)

        return WindowDecoding(partial(self.decode, skip_special_tokens=skip_special_tokens), is_silent, byte_ids)

    @cached_property
    def _splits_sequences(self) -> bool:
        return splits_sequences(self.backend)

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        return byte_tokens(self.backend)

    def _vocab_size(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def _special_ids(self) -> frozenset[int]:
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)


def load_tokenizer(
    files: ModelFiles, *, tokenizer_config_path: str | Path | None = None, trust_remote_code: bool = False
) -> Tokenizer:
    """The tokenizer of a model: from tokenizer.json or tokenizer.model directly, else through transformers.

    Raises:
        TokenizerError: there is none, or it is malformed; the message names the file.
    """
    config = read_tokenizer_config(files.folder, tokenizer_config_path)
    templates = chat_templates(files.folder, config, tokenizer_config_path is not None)
    special_tokens = named_tokens(config)
    ends = end_ids(files.generation_config, files.config, files.config.get("text_config") or {})
    backend = _tokenizer_json(files.folder) or load_sentencepiece_bpe(files.folder)
    if backend is None:
        from tgi_core.tokenizer.slow import load_through_transformers

        return load_through_transformers(files.folder, trust_remote_code, special_tokens, templates, ends)
    try:
        _complete(backend, config, special_tokens)
    except (TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(
            f"{files.folder}/tokenizer_config.json is malformed ({error}); download it again"
        ) from error
    return Tokenizer(backend, special_tokens=special_tokens, templates=templates, end_ids=ends)


def _tokenizer_json(folder: Path) -> tokenizers.Tokenizer | None:
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{path} cannot be read ({error}); download it again") from error


def _complete(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Add what only tokenizer_config.json says: further added tokens, which are special, start and end of text."""
    known = backend.get_added_tokens_decoder()
    for token_id, fields in sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        if int(token_id) not in known:
            backend.add_tokens([AddedToken(**fields)])
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for token in (*special_tokens.values(), *extra_special_tokens(config)):
        if token not in special and backend.token_to_id(token) is not None:  # a new one would have no embedding
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    if config.get("tokenizer_class") in LLAMA_CLASSES and {"add_bos_token", "add_eos_token"} & config.keys():
        _add_start_and_end(backend, config, special_tokens)


def _add_start_and_end(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> None:
    bos = special_tokens.get("bos_token", "") if config.get("add_bos_token", True) else ""
    eos = special_tokens.get("eos_token", "") if config.get("add_eos_token", False) else ""
    ids = [(token, backend.token_to_id(token)) for token in (bos, eos) if token]
    if any(token_id is None for _, token_id in ids):
        return
    single = " ".join(filter(None, (bos and f"{bos}:0", "$A:0", eos and f"{eos}:0")))
    pair = single + " " + single.replace(":0", ":1").replace("$A", "$B")
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
