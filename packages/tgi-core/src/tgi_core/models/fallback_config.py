"""What transformers knows of a model that has no family here: its configuration, and which of its classes runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tgi_core.errors import UnsupportedModel
from tgi_core.model_config import ModelConfig, parse_model_config

#: what of transformers' configurations we read; each class maps these to names of its own
NAMES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "sliding_window", "layer_types", "attn_logit_softcapping",
    "tie_word_embeddings", "dtype", "is_encoder_decoder", "decoder_start_token_id", "bos_token_id",
)  # fmt: skip
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "context_length", "n_ctx")
RELATIVE = "relative_attention_num_buckets"  #: of models that know distances and no positions
UNKNOWN_POSITIONS = 4096  #: where a model has no longest sequence, and nobody wished for one
OWN_CODE = "auto_map"  #: config.json's key for classes that come with the model


def parse_fallback_config(
    raw: Mapping[str, Any],
    folder: Path,
    *,
    trust_remote_code: bool,
    generation_config: Mapping[str, Any] = MappingProxyType({}),
    max_total_tokens: int | None = None,
) -> ModelConfig:
    """The shape of a model as transformers reads it, with its defaults.

    Args:
        raw: of config.json.
        generation_config: generation_config.json, which may name an encoder-decoder's start token.
        max_total_tokens: a person's wish, for models that know no longest sequence.

    Raises:
        UnsupportedModel: transformers cannot read it, it is quantised, or it has code of its own that nobody trusts.
    """
    refuse_quantised(raw.get("quantization_config"))
    config = read_config(raw, folder, trust_remote_code).get_text_config(decoder=True)
    found = {name: getattr(config, name, None) for name in NAMES}
    positions = next((getattr(config, name) for name in POSITIONS if _is_count(getattr(config, name, None))), None)
    found["max_position_embeddings"] = positions or max_total_tokens or UNKNOWN_POSITIONS
    found["dtype"] = str(found["dtype"] or "").removeprefix("torch.") or None
    if not _is_count(found["num_attention_heads"]):  # each layer its own, or none
        found |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": None}
    if not _is_count(found["num_key_value_heads"]):
        found["num_key_value_heads"] = None
    if len(found["layer_types"] or ()) != found["num_hidden_layers"] or not _is_count(found["sliding_window"]):
        found |= {"layer_types": None, "sliding_window": found["sliding_window"] or None}
    if _is_count(getattr(config, RELATIVE, None)):
        found[RELATIVE] = getattr(config, RELATIVE)
    kept = {name: raw[name] for name in ("architectures", "model_type", OWN_CODE) if name in raw}
    return parse_model_config(kept | found, generation_config)


def refuse_quantised(quantization: Any) -> None:
    """Raise UnsupportedModel if there is a quantization: its name, or config.json's entry."""
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise UnsupportedModel(
            f"{method} quantization is not supported for models that transformers runs; leave --quantize out, "
            "and use the original checkpoint"
        )


def read_config(raw: Mapping[str, Any], folder: Path, trust_remote_code: bool) -> Any:
    """transformers' configuration of the model in a folder.

    Raises:
        UnsupportedModel: transformers cannot read it, or it has code of its own that nobody trusts.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = raw.get("model_type")
    if model_type not in CONFIG_MAPPING and raw.get(OWN_CODE) and not trust_remote_code:
        raise UnsupportedModel(f"transformers cannot load {model_type!r} models by itself; {needs_trust(raw)}")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # anything may go wrong in a model's own code
        raise UnsupportedModel(f"transformers cannot load this model's configuration: {error}") from error


def auto_class(raw: Mapping[str, Any], config: Any, trust_remote_code: bool) -> Any:
    """`AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`, whichever knows the model.

    Raises:
        UnsupportedModel: neither does.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kinds = [AutoModelForCausalLM, AutoModelForSeq2SeqLM]
    if getattr(config, "is_encoder_decoder", False):
        kinds.reverse()  # some of them have a decoder that could run alone too
    own = raw.get(OWN_CODE) or {}
    for kind in kinds:
        if type(config) in kind._model_mapping or (trust_remote_code and kind.__name__ in own):
            return kind
    hint = f"; {needs_trust(raw)}" if any(kind.__name__ in own for kind in kinds) and not trust_remote_code else ""
    raise UnsupportedModel(
        f"transformers has neither a causal nor a sequence-to-sequence language model "
        f"of type {raw.get('model_type')!r}{hint}"
    )


def needs_trust(raw: Mapping[str, Any]) -> str:
    """What to do about a model's own code."""
    classes = (raw.get(OWN_CODE) or {}).values()
    names = [name for entry in classes for name in ([entry] if isinstance(entry, str) else entry) if name]
    files = sorted({f"{name.rpartition('--')[2].partition('.')[0]}.py" for name in names})
    return f"it comes with code of its own ({', '.join(files)}): read it, and pass --trust-remote-code to run it"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
