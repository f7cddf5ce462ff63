"""Reads what stands around a tokenizer.json: names of special tokens, chat templates, ends of text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tgi_core.errors import TokenizerError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT_TEMPLATE = "default"


def read_tokenizer_config(folder: Path, override: str | Path | None) -> dict[str, Any]:
    """tokenizer_config.json, completed from special_tokens_map.json; `override` names a file to read instead.

    Raises:
        TokenizerError: a file is missing or malformed.
    """
    path = Path(override).expanduser() if override else folder / "tokenizer_config.json"
    if override and not path.is_file():
        raise TokenizerError(f"{path}: there is no such file; check --tokenizer-config-path")
    config = _read_object(path) if path.is_file() else {}
    special = folder / "special_tokens_map.json"
    return (_read_object(special) if special.is_file() else {}) | config


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Role -> token: {"bos_token": "<s>", ...}; roles without a token are left out."""
    found = {}
    for name in NAMED_TOKENS:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


def extra_special_tokens(config: Mapping[str, Any]) -> list[str]:
    """Special tokens without a role."""
    values = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    values = list(values.values()) if isinstance(values, dict) else values
    contents = [value.get("content") if isinstance(value, dict) else value for value in values]
    return [content for content in contents if isinstance(content, str)]


def chat_templates(folder: Path, config: Mapping[str, Any], overridden: bool) -> dict[str, str]:
    """Name -> template; the unnamed one is called "default".

    Files (`chat_template.jinja`, `additional_chat_templates/*.jinja`) beat `chat_template.json`, that beats
    tokenizer_config.json; a tokenizer_config.json that a person put in its place beats them all.
    """
    templates = _listed(config.get("chat_template"))
    if overridden and templates:
        return templates
    old = folder / "chat_template.json"
    if old.is_file():
        templates = _listed(_read_object(old).get("chat_template")) or templates
    single = folder / "chat_template.jinja"
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if single.is_file():
        files[DEFAULT_TEMPLATE] = single
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    return templates


def end_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    """The `eos_token_id` of the first of these configurations that has one, as a tuple; what is no id is left out."""
    for config in configs:
        value = config.get("eos_token_id")
        if value is not None:
            values = value if isinstance(value, list) else [value]
            return tuple(token_id for token_id in values if type(token_id) is int and token_id >= 0)
    return ()


def _listed(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {DEFAULT_TEMPLATE: value}
    if isinstance(value, dict):
        return {str(name): text for name, text in value.items() if isinstance(text, str)}
    if isinstance(value, list):
        return {entry["name"]: entry["template"] for entry in value if {"name", "template"} <= entry.keys()}
    return {}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} should hold a JSON object")
    return value
