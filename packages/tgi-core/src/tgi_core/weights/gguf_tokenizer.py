"""Builds tokenizer.json and tokenizer_config.json from the vocabulary in a GGUF file's metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgi_core.errors import TokenizerError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # token types

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _digits() -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": True}


GPT2 = _byte_level(use_regex=True)
FALCON = _sequence(
    {"type": "Punctuation", "behavior": "Contiguous"},
    _byte_level(use_regex=True),
    {"type": "Digits", "individual_digits": False},
    _split("[0-9][0-9][0-9]"),
)
CODE = _sequence(_digits(), _byte_level(use_regex=True))
LLAMA3 = _sequence(_split(LLAMA3_PATTERN), _byte_level(use_regex=False))
QWEN2 = _sequence(_split(QWEN2_PATTERN), _byte_level(use_regex=False))
PRE_TOKENIZERS = {  # tokenizer.ggml.pre -> how text is cut before merging
    "gpt-2": GPT2, "phi-2": GPT2, "mpt": GPT2, "olmo": GPT2, "jais": GPT2, "default": GPT2, "": GPT2,
    "falcon": FALCON,
    "smollm": CODE, "starcoder": CODE, "refact": CODE, "command-r": CODE, "codeshell": CODE, "exaone": CODE,
    "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "dbrx": LLAMA3, "smaug-bpe": LLAMA3, "falcon3": LLAMA3,
    "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2, "stablelm2": QWEN2,
}  # fmt: skip
IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3", "falcon3")  # a word that is a token is not cut
NFC = ("qwen2", "deepseek-r1-qwen", "stablelm2")
SPACE = "▁"


def tokenizer_files(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """File name -> JSON content.

    Raises:
        TokenizerError: the vocabulary is of a kind that cannot be rebuilt, or malformed.
    """
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if kind not in builders:
        raise TokenizerError(
            f"{path}: a tokenizer of kind {kind!r} cannot be taken out of a GGUF file (only {', '.join(builders)}); "
            "use the safetensors checkpoint"
        )
    _check(path, metadata)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(metadata),
        **builders[kind](path, metadata),
        "post_processor": _post_processor(metadata, kind == "llama"),
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": _tokenizer_config(metadata)}


def _check(path: Path, metadata: dict[str, Any]) -> None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise TokenizerError(f"{path}: tokenizer.ggml.tokens is not a list of strings; download the file again")
    for key in ("token_type", "scores"):
        values = metadata.get(f"tokenizer.ggml.{key}")
        if values is not None and (not isinstance(values, list) or len(values) != len(tokens)):
            raise TokenizerError(f"{path}: tokenizer.ggml.{key} does not fit the tokens; download the file again")
    for name in ("bos", "eos", "unknown", "padding"):
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id", 0)
        if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
            raise TokenizerError(f"{path}: the {name} token {token_id!r} is not in the vocabulary; download it again")


def _byte_level_bpe(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    pre = metadata.get("tokenizer.ggml.pre", "")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(name for name in PRE_TOKENIZERS if name)
        raise TokenizerError(
            f"{path}: the pre-tokenizer {pre!r} is not known (only {known}); use the safetensors checkpoint"
        )
    merges = metadata.get("tokenizer.ggml.merges", [])
    if not isinstance(merges, list) or not all(isinstance(m, str) and m.count(" ") == 1 for m in merges):
        raise TokenizerError(f"{path}: tokenizer.ggml.merges is not a list of pairs; download the file again")
    return {
        "normalizer": {"type": "NFC"} if pre in NFC else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in IGNORE_MERGES,
            "vocab": _vocabulary(metadata),
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _sentencepiece_bpe(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    if metadata.get("tokenizer.ggml.scores") is None:
        raise TokenizerError(f"{path}: tokenizer.ggml.scores is missing; download the file again")
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _token(metadata, "unknown"),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": _vocabulary(metadata),
            "merges": _merges_of_scores(metadata),
        },
    }


def _merges_of_scores(metadata: dict[str, Any]) -> list[list[str]]:
    """The merges that do what SentencePiece does: join the pair whose piece scores highest."""
    types = metadata.get("tokenizer.ggml.token_type")
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    ranks = {token: i for i, token in enumerate(tokens)}
    merges = []
    for i, token in enumerate(tokens):
        if types and types[i] in (UNKNOWN, CONTROL):
            continue
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        found = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        found.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(scores[i], pair) for pair in found]
    merges.sort(key=lambda merge: (merge[0], len(merge[1][0]), len(merge[1][1])), reverse=True)
    return [list(pair) for _, pair in merges]


def _vocabulary(metadata: dict[str, Any]) -> dict[str, int]:
    return {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}


def _added_tokens(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    types = metadata.get("tokenizer.ggml.token_type") or []
    tokens = metadata["tokenizer.ggml.tokens"]
    return [
        {
            "id": i,
            "content": tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for i, kind in enumerate(types)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and tokens[i]
    ]


def _post_processor(metadata: dict[str, Any], is_sentencepiece: bool) -> dict[str, Any] | None:
    bos, eos = _token(metadata, "bos"), _token(metadata, "eos")
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", is_sentencepiece)
    add_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    before = [(bos, metadata["tokenizer.ggml.bos_token_id"])] if add_bos and bos else []
    after = [(eos, metadata["tokenizer.ggml.eos_token_id"])] if add_eos and eos else []
    if not before and not after:
        return None

    def special(tokens: list[tuple[str, int]], segment: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token, "type_id": segment}} for token, _ in tokens]

    def template(name: str, segment: int) -> list[dict[str, Any]]:
        return [*special(before, segment), {"Sequence": {"id": name, "type_id": segment}}, *special(after, segment)]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in before + after},
    }


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    config: dict[str, Any] = {key: _token(metadata, name) for name, key in names.items() if _token(metadata, name)}
    config["clean_up_tokenization_spaces"] = False
    config["chat_template"] = _chat_templates(metadata)
    return {key: value for key, value in config.items() if value is not None}


def _chat_templates(metadata: dict[str, Any]) -> str | list[dict[str, str]] | None:
    default = metadata.get("tokenizer.chat_template")
    names = [name for name in metadata.get("tokenizer.chat_templates", []) if isinstance(name, str)]
    if not names:
        return default
    named = {name: metadata.get(f"tokenizer.chat_template.{name}") for name in names} | {"default": default}
    return [{"name": name, "template": template} for name, template in named.items() if template]


def _token(metadata: dict[str, Any], name: str) -> str | None:
    token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return None if token_id is None else metadata["tokenizer.ggml.tokens"][token_id]
