"""Llama's and Mistral's tokenizer.model, for folders that have no tokenizer.json.

A SentencePiece model of kind BPE holds pieces and scores, as the vocabulary of a GGUF file does, so both are built the
same way; transformers' own conversion takes another order where pieces are nothing but spaces.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from tgi_core.errors import TokenizerError
from tgi_core.weights.gguf_tokenizer import tokenizer_files

FILE = "tokenizer.model"
IDENTITY = "identity"  #: the normalizer that changes nothing


def load_sentencepiece_bpe(folder: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of a folder's tokenizer.model; None if there is none, or it is of another kind.

    Raises:
        TokenizerError: the file is malformed.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        return None  # tiktoken's files have this name too
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    is_ours = (
        trainer.model_type == trainer.BPE
        and trainer.byte_fallback
        and normalizer.name == IDENTITY
        and not normalizer.remove_extra_whitespaces
    )
    if not is_ours:
        return None
    files = tokenizer_files(path, _metadata(model))
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{path} cannot be read ({error}); download it again") from error


def _metadata(model: Any) -> dict[str, Any]:
    """The vocabulary as GGUF files name it; the types of pieces have the same numbers."""
    trainer = model.trainer_spec
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.piece for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in model.pieces],
        "tokenizer.ggml.add_space_prefix": model.normalizer_spec.add_dummy_prefix,
        "tokenizer.ggml.unknown_token_id": trainer.unk_id,
        "tokenizer.ggml.bos_token_id": trainer.bos_id,
        "tokenizer.ggml.eos_token_id": trainer.eos_id,
    }
