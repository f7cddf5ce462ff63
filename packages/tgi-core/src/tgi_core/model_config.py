"""The shape of a model, read from the dictionary of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tgi_core.errors import UnsupportedModel


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary position embedding (arXiv 2104.09864) and how it is stretched."""

    theta: float
    size: int  #: dimensions of a head that are rotated
    rule: str = "default"  #: "default" | "linear" | "llama3" | "yarn" | ...
    parameters: Mapping[str, Any]  #: of the rule, as config.json names them
    max_positions: int = 2048  #: that the stretched embedding is for


_T5 = {
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "d_kv": 64,
    "feed_forward_proj": "relu",
    "n_positions": 512,
}

#: model_type -> what transformers takes for keys that config.json leaves out, where that differs between families
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"use_sliding_window": False},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    "qwen2": {
        "qkv_bias": True,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "max_position_embeddings": 32768,
    },
    "qwen3": {
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "max_position_embeddings": 32768,
    },
    "bloom": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-5},
    "falcon": {"activation": "gelu", "multi_query": True, "layer_norm_epsilon": 1e-5},
    "RefinedWeb": {
        "activation": "gelu",
        "multi_query": True,
        "new_decoder_architecture": True,
        "layer_norm_epsilon": 1e-5,
    },
    "RefinedWebModel": {"activation": "gelu", "multi_query": True, "layer_norm_epsilon": 1e-5},
    "gpt2": {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_positions": 1024},
    "gpt_bigcode": {
        "activation_function": "gelu_pytorch_tanh",
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
        "n_positions": 1024,
    },
    "gpt_neox": {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_pct": 0.25},
    "gptj": {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "rotary_dim": 64},
    "mpt": {"hidden_act": "gelu", "layer_norm_epsilon": 1e-5},
    "opt": {"activation_function": "relu", "layer_norm_eps": 1e-5},
    "phi": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    "phi3": {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
    "mixtral": {
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 131072,
    },
    "qwen2_moe": {
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "qkv_bias": True,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_position_embeddings": 32768,
    },
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_position_embeddings": 32768,
    },
    "starcoder2": {
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "use_bias": True,
        "max_position_embeddings": 4096,
    },
    "stablelm": {
        "num_key_value_heads": 32,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
        "max_position_embeddings": 4096,
    },
    "olmo2": {"rms_norm_eps": 1e-5},
    "t5": _T5,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu", "n_positions": 1024},
    "umt5": {**_T5, "feed_forward_proj": "gated-gelu", "n_positions": 1024},
    "cohere": {"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "rope_theta": 5e5, "max_position_embeddings": 8192},
    "gemma": {
        "head_dim": 256,
        "num_key_value_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
    },
    "gemma2": {
        "head_dim": 256,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
    },
    "gemma3_text": {
        "head_dim": 256,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
}


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
    kv_copies: int = 1  #: neighbouring ranks that hold the same key and value heads
    head_size: int
    max_positions: int
    norm_eps: float
    activation: str
    tie_word_embeddings: bool
    sliding_windows: tuple[int | None, ...]  #: per layer
    rotary: RotaryConfig
    local_rotary: RotaryConfig | None  #: of layers with a sliding window, where they have one of their own
    dtype: str | None  #: of the checkpoint
    decoder_start_ids: tuple[int, ...] = ()  #: with which the decoder of an encoder-decoder begins; () for decoders
    raw: Mapping[str, Any]

    @property
    def parameters_dtype(self) -> str:
        """The checkpoint's dtype, where its config names one."""
        return self.dtype or "float32"

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return bool(self.decoder_start_ids)

    @property
    def relative_positions(self) -> bool:
        """Whether only distances count, the far ones alike, so that `max_positions` bounds nothing."""
        return "relative_attention_num_buckets" in self.raw


def parse_model_config(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] = MappingProxyType({})
) -> ModelConfig:
    """Read config.json of transformers 4 or 5.

    Args:
        generation_config: generation_config.json, which may name an encoder-decoder's start token.

    Raises:
        UnsupportedModel: a size is missing or senseless, so that this is no decoder that we know.
    """
    try:
        return _parse({**DEFAULTS.get(config.get("model_type", ""), {}), **config}, generation_config)
    except KeyError as error:
        raise UnsupportedModel(
            f"config.json has no {error.args[0]!r}, which every decoder needs; "
            f"its model_type is {config.get('model_type')!r}"
        ) from None
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise UnsupportedModel(f"config.json is malformed ({error}); download it again") from error


#: the families' names of one thing, the most common first
_ALIASES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_size": ("head_dim", "d_kv"),
    "max_positions": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "activation": ("hidden_act", "hidden_activation", "activation_function", "activation"),
    "dtype": ("dtype", "torch_dtype"),
}


def _parse(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> ModelConfig:
    hidden, heads, layers = (_count(config, name) for name in ("hidden_size", "num_heads", "num_layers"))
    kv_heads = 1 if _is_multi_query(config) else _count(config, "num_kv_heads", heads)
    if heads % kv_heads:
        raise UnsupportedModel(
            f"config.json asks for {heads} attention heads, which is no multiple of {kv_heads} key and value heads"
        )
    head_size = _count(config, "head_size", max(1, hidden // heads))
    return ModelConfig(
        architecture=architecture(config),
        model_type=config.get("model_type", ""),
        vocab_size=_count(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_count(config, "intermediate_size", 4 * hidden),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        max_positions=_positions(config, rotary := _rotary(config, head_size)),
        norm_eps=float(_find(config, "norm_eps", 1e-6)),
        activation=_find(config, "activation", "silu"),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        sliding_windows=_sliding_windows(config, layers),
        rotary=rotary,
        local_rotary=_local_rotary(config, head_size),
        dtype=_find(config, "dtype", None),
        decoder_start_ids=_decoder_start_ids(config, generation_config),
        raw=config,
    )


def _is_multi_query(config: Mapping[str, Any]) -> bool:
    """Falcon and GPTBigCode have a flag for it, SantaCoder's first config a name."""
    if config.get("attention_head_type") == "multiquery":
        return True
    return bool(config.get("multi_query")) and not config.get("new_decoder_architecture")


def _find(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first alias that is there and not null."""
    aliases = _ALIASES.get(name, (name,))
    return next((config[alias] for alias in aliases if config.get(alias) is not None), default)


def _count(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A positive number; KeyError if it is missing and has no default."""
    aliases = _ALIASES.get(name, (name,))
    value = _find(config, name, default)
    alias = next((alias for alias in aliases if alias in config), None)
    if value is None and alias is None:
        raise KeyError(aliases[0])
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(f"config.json: {alias} is {value!r}; it must be a positive whole number")
    return value


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


def _decoder_start_ids(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """As transformers' `generate`: `decoder_start_token_id`, else `bos_token_id`, of generation_config.json first."""
    if not config.get("is_encoder_decoder"):
        return ()
    for name in ("decoder_start_token_id", "bos_token_id"):
        for source in (generation_config, config):
            if type(source.get(name)) is int:
                return (source[name],)
    raise UnsupportedModel("config.json names no `decoder_start_token_id`, with which the decoder would begin; add it")


def _sliding_windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Per layer: `layer_types` where there are some, else all but each n-th, else all from `max_window_layers` on."""
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return (None,) * layers
    window = _count(config, "sliding_window")
    if types := config.get("layer_types"):
        if len(types) != layers:
            raise UnsupportedModel(f"config.json names the types of {len(types)} layers, but the model has {layers}")
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    if pattern := config.get("sliding_window_pattern"):
        return tuple(window if (layer + 1) % pattern else None for layer in range(layers))
    first = config.get("max_window_layers") or 0
    return tuple(window if layer >= first else None for layer in range(layers))


def _positions(config: Mapping[str, Any], rotary: RotaryConfig) -> int:
    """The longest sequence; YaRN's configs name the trained context and the factor that stretches it."""
    positions = _count(config, "max_positions", 2048)
    if rotary.rule != "yarn" or not rotary.parameters.get("factor"):
        return positions
    return max(positions, int(rotary.parameters["factor"] * rotary.parameters["original_max_position_embeddings"]))


def _rotary(config: Mapping[str, Any], head_size: int) -> RotaryConfig:
    """transformers 5 writes `rope_parameters`, older ones `rope_theta` and `rope_scaling`, which wins."""
    own = config.get("rope_parameters") or {}
    return _rotary_of(config, config.get("rope_scaling") or own.get("full_attention") or own, head_size)


def _local_rotary(config: Mapping[str, Any], head_size: int) -> RotaryConfig | None:
    """Of Gemma 3's layers with a window: `rope_local_base_freq`, or `rope_parameters` by the type of layer."""
    own = (config.get("rope_parameters") or {}).get("sliding_attention")
    theta = config.get("rope_local_base_freq")
    if own is None and theta is None:
        return None
    return _rotary_of(config, {"rope_theta": theta, **(own or {})}, head_size)


def _rotary_of(config: Mapping[str, Any], rope: Mapping[str, Any], head_size: int) -> RotaryConfig:
    positions = _count(config, "max_positions", 2048)
    stretched = dict(rope)
    trained = config.get("original_max_position_embeddings") or stretched.get("original_max_position_embeddings")
    stretched["original_max_position_embeddings"] = trained or positions
    partial = stretched.get("partial_rotary_factor") or config.get("partial_rotary_factor") or config.get("rotary_pct")
    theta = stretched.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base")
    rule = str(stretched.get("rope_type") or stretched.get("type") or "default")
    return RotaryConfig(
        theta=float(theta or 10000.0),
        size=config.get("rotary_dim") or int(head_size * (partial or 1.0)),
        rule=_OLD_RULES.get((config.get("model_type", ""), rule), rule),
        parameters=stretched,
        max_positions=positions,
    )


#: (model_type, rule) -> what the rule is called now
_OLD_RULES = {("phi3", "su"): "longrope", ("phi3", "yarn"): "longrope"}
