"""The shape of a model, read from the dictionary of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tgi_core.errors import UnsupportedModel


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary position embedding (arXiv 2104.09864) and how it is stretched."""

    theta: float
    size: int  #: dimensions of a head that are rotated
    rule: str = "default"  #: "default" | "linear" | "llama3" | "yarn" | ...
    parameters: Mapping[str, Any]  #: of the rule, as config.json names them


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Facts that every decoder has; what only one family knows is in `raw`."""

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    max_positions: int
    norm_eps: float
    activation: str
    tie_word_embeddings: bool
    sliding_windows: tuple[int | None, ...]  #: per layer
    rotary: RotaryConfig
    dtype: str | None  #: of the checkpoint
    raw: Mapping[str, Any]

    @property
    def parameters_dtype(self) -> str:
        """The checkpoint's dtype, where its config names one."""
        return self.dtype or "float32"


def parse_model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json of transformers 4 or 5.

    Raises:
        UnsupportedModel: a size is missing, so that this is no decoder that we know.
    """
    try:
        return _parse(config)
    except KeyError as error:
        raise UnsupportedModel(
            f"config.json has no {error.args[0]!r}, which every decoder needs; "
            f"its model_type is {config.get('model_type')!r}"
        ) from None


def _parse(config: Mapping[str, Any]) -> ModelConfig:
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    return ModelConfig(
        architecture=architecture(config),
        model_type=config.get("model_type", ""),
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_size=head_size,
        max_positions=config.get("max_position_embeddings", 2048),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        activation=config.get("hidden_act", "silu"),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        sliding_windows=_sliding_windows(config, layers),
        rotary=_rotary(config, head_size),
        dtype=config.get("dtype") or config.get("torch_dtype"),
        raw=config,
    )


def architecture(config: Mapping[str, Any]) -> str:
    """The class name that config.json gives the model.

    Raises:
        UnsupportedModel: there is none.
    """
    names = config.get("architectures") or ()
    if not names:
        raise UnsupportedModel(
            "config.json names no `architectures`, so the kind of model is unknown; add the class name"
        )
    return str(names[0])


def _sliding_windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Per layer: Mistral's for all, Qwen's only where `use_sliding_window`, and `layer_types` where there are some."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return (None,) * layers
    if types := config.get("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = config.get("max_window_layers", 0) if "use_sliding_window" in config else 0
    return tuple(window if layer >= first else None for layer in range(layers))


def _rotary(config: Mapping[str, Any], head_size: int) -> RotaryConfig:
    """transformers 5 keeps everything in `rope_parameters`, older ones in `rope_theta` and `rope_scaling`."""
    stretched = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rule = stretched.get("rope_type") or stretched.get("type") or "default"
    stretched.setdefault("original_max_position_embeddings", config.get("max_position_embeddings", 2048))
    partial = stretched.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return RotaryConfig(
        theta=float(stretched.get("rope_theta") or config.get("rope_theta") or 10000.0),
        size=int(head_size * partial),
        rule=rule,
        parameters=stretched,
    )
