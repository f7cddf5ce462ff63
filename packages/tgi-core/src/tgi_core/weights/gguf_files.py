"""Writes the configuration and tokenizer that a GGUF file holds as the files of Hugging Face's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tgi_core.errors import WeightsError
from tgi_core.weights.cache import derived_folder
from tgi_core.weights.gguf_config import model_config
from tgi_core.weights.gguf_header import GGUFHeader, read_gguf_header
from tgi_core.weights.gguf_tokenizer import tokenizer_files


def derive_model_folder(path: Path) -> Path:
    """A folder with config.json, generation_config.json, tokenizer.json and tokenizer_config.json; made once.

    Raises:
        WeightsError: the file is malformed.
        UnsupportedModel: its architecture has no counterpart here.
        TokenizerError: its tokenizer has none.
    """

    def make(folder: Path) -> None:
        header = read_gguf_header(path)
        try:
            files = {
                "config.json": model_config(path, header),
                "generation_config.json": _generation_config(header),
                **tokenizer_files(path, header.metadata),
            }
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise WeightsError(f"{path}: its metadata is malformed ({error}); download it again") from error
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    return derived_folder("gguf", [path], make)


def _generation_config(header: GGUFHeader) -> dict[str, Any]:
    ids = {
        name: header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")
    }
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None))
    config = {"bos_token_id": ids["bos"], "eos_token_id": ends or None, "pad_token_id": ids["padding"]}
    return {key: value for key, value in config.items() if value is not None}
