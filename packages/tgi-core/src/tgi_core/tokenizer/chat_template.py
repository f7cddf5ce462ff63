"""Renders chats exactly as transformers' `apply_chat_template` does, sandboxed, each template compiled once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tgi_core.errors import ChatTemplateError
from tgi_core.tokenizer.tokenizer_config import DEFAULT_TEMPLATE

MAX_RENDERED_CHARACTERS = 32 << 20
TOOL_TEMPLATE = "tool_use"
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # the first is what templates read


class ChatTemplates:
    """The chat templates of one model."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, jinja2.Template] = {}

    def source(self, name: str | None = None, *, with_tools: bool = False) -> str | None:
        """The text of a template; without a name the one that suits, None if the model has none at all."""
        if not self._sources:
            return None
        return self._sources[self._choose(name, with_tools)]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        template_name: str | None,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt for a chat.

        Raises:
            ChatTemplateError: there is no such template, it refuses these messages, or its output has no end.
        """
        if not messages:
            raise ChatTemplateError("a chat needs at least one message")
        template = self._template(self._choose(template_name, tools is not None))
        context = {
            **self._special_tokens,
            "documents": None,
            **_plain(variables),
            "messages": [_complete(message) for message in messages],
            "tools": _plain(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return _join_capped(template.generate(context))
        except ChatTemplateError:
            raise
        except RecursionError as error:
            raise ChatTemplateError("the chat template recurses without end") from error
        except Exception as error:  # a template may fail in any way that Python can
            raise ChatTemplateError(f"the chat template failed on these messages: {error}") from error

    def _choose(self, name: str | None, with_tools: bool) -> str:
        if not self._sources:
            raise ChatTemplateError(
                "this model has no chat template; use a completion endpoint, or give one with --tokenizer-config-path"
            )
        wished = [name] if name else [TOOL_TEMPLATE, DEFAULT_TEMPLATE] if with_tools else [DEFAULT_TEMPLATE]
        for candidate in wished:
            if candidate in self._sources:
                return candidate
        raise ChatTemplateError(f"this model has no chat template {wished[-1]!r}; it has {', '.join(self._sources)}")

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            try:
                self._compiled[name] = _environment().from_string(self._sources[name])
            except (jinja2.TemplateError, RecursionError) as error:
                raise ChatTemplateError(f"the chat template {name!r} is malformed: {error}") from error
        return self._compiled[name]


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it only passes through."""

    tags = {"generation"}  # noqa: RUF012 (the attribute's name and kind are jinja's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(jinja2.utils.Namespace):
    """A namespace whose attributes cannot reach into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works, as in jinja
        self, args = args[0], args[1:]
        for name in (attributes := dict(*args, **kwargs)):
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: str) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template cannot store the attribute {name!r} on a namespace")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": _Namespace}
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML characters; models were trained without that."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # the local clock, as in transformers


def _complete(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys that are None, which many templates would print, and with the reasoning under each of its names."""
    plain: dict[str, Any] = {key: _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING_FIELDS if name in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Rebuilt of JSON's types: methods of anything else would be open to the template."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _join_capped(pieces: Any) -> str:
    rendered, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_RENDERED_CHARACTERS:
            raise ChatTemplateError(f"the chat template wrote more than {MAX_RENDERED_CHARACTERS} characters")
        rendered.append(piece)
    return "".join(rendered)
