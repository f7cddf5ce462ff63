"""Says a GGUF file's metadata in the words of config.json, and its tensors' names in Hugging Face's."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgi_core.errors import UnsupportedModel, WeightsError
from tgi_core.weights.gguf_header import GGUFHeader


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One GGUF architecture and the Hugging Face one that computes the same."""

    name: str
    model_type: str
    permuted: bool = False  #: q and k rows are stored for interleaved rotary
    norm_offset: float = 0.0  #: norm weights are stored with this added
    defaults: tuple[tuple[str, Any], ...] = ()
    layer_names: tuple[tuple[str, str], ...] = ()  #: where they are not those of LAYER_NAMES


_GEMMA = (("hidden_act", "gelu_pytorch_tanh"), ("hidden_activation", "gelu_pytorch_tanh"))
_GEMMA_NORMS = (
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
)
ARCHITECTURES = {
    "llama": Architecture(name="LlamaForCausalLM", model_type="llama", permuted=True),
    "qwen2": Architecture(name="Qwen2ForCausalLM", model_type="qwen2"),
    "qwen3": Architecture(name="Qwen3ForCausalLM", model_type="qwen3"),
    "gemma": Architecture(name="GemmaForCausalLM", model_type="gemma", norm_offset=1.0, defaults=_GEMMA),
    "gemma2": Architecture(
        name="Gemma2ForCausalLM", model_type="gemma2", norm_offset=1.0, defaults=_GEMMA, layer_names=_GEMMA_NORMS
    ),
    "gemma3": Architecture(
        name="Gemma3ForCausalLM",
        model_type="gemma3_text",
        norm_offset=1.0,
        defaults=(*_GEMMA, ("rope_local_base_freq", 10000.0)),
        layer_names=_GEMMA_NORMS,
    ),
}
LARGEST_GEMMAS = {"gemma2": 46, "gemma3": 62}  #: layers of the models whose scores are scaled by another size
KEYS = {  # key after "<architecture>." -> name in config.json
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
OPTIONAL_KEYS = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NO_WEIGHTS = ("rope_freqs.weight",)  # constants of the rotary embedding, told by the configuration


def architecture_of(path: Path, header: GGUFHeader) -> Architecture:
    """The counterpart of the file's architecture.

    Raises:
        UnsupportedModel: there is none.
    """
    name = header.metadata.get("general.architecture")
    experts = header.metadata.get(f"{name}.expert_count")
    if name not in ARCHITECTURES or experts:
        what = f"{name} with experts" if experts else name
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(
            f"{path}: GGUF files of architecture {what} cannot be read (only {known}); use the safetensors checkpoint"
        )
    return ARCHITECTURES[name]


def huggingface_name(architecture: Architecture, name: str) -> str | None:
    """The name of a tensor in Hugging Face's layout, None if it has none."""
    stem, _, suffix = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer:
        inner = (LAYER_NAMES | dict(architecture.layer_names)).get(layer[2])
        return f"model.layers.{layer[1]}.{inner}.{suffix}" if inner else None
    return f"{NAMES[stem]}.{suffix}" if stem in NAMES else None


def model_config(path: Path, header: GGUFHeader) -> dict[str, Any]:
    """The config.json of a file.

    Raises:
        UnsupportedModel: the architecture has no counterpart.
        WeightsError: the metadata lacks something or contradicts itself.
    """
    architecture = architecture_of(path, header)
    fact = _facts(path, header)
    config = {name: fact(key, None) for key, name in KEYS.items()}
    prefix = header.metadata["general.architecture"]
    config |= {name: fact(key, None) for key, name in OPTIONAL_KEYS.items() if f"{prefix}.{key}" in header.metadata}
    config |= dict(architecture.defaults)
    heads = config["num_attention_heads"]
    rope_theta = fact("rope.freq_base", 10000.0)
    config |= {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "num_key_value_heads": fact("attention.head_count_kv", heads),
        "head_dim": fact("attention.key_length", config["hidden_size"] // heads),
        "vocab_size": _rows(path, header, "token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "torch_dtype": "bfloat16",
    }
    scaling = _rope_scaling(path, header, fact, rope_theta, config["head_dim"])
    if scaling:
        config["rope_scaling"] = scaling
        config["rope_parameters"] = {"rope_theta": rope_theta, **scaling}
    config.setdefault("hidden_act", "silu")
    if prefix in LARGEST_GEMMAS:
        is_largest = config["num_hidden_layers"] == LARGEST_GEMMAS[prefix]
        config["query_pre_attn_scalar"] = config["hidden_size"] // heads if is_largest else config["head_dim"]
    for name in ("bos", "eos"):
        config[f"{name}_token_id"] = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return config


Fact = Callable[[str, Any], Any]


def _facts(path: Path, header: GGUFHeader) -> Fact:
    prefix = header.metadata["general.architecture"]

    def fact(key: str, default: Any) -> Any:
        value = header.metadata.get(f"{prefix}.{key}", default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # one value per layer
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise WeightsError(f"{path}: {prefix}.{key} is {value!r}, a positive number is needed; download it again")
        return value

    return fact


def _rows(path: Path, header: GGUFHeader, name: str) -> int:
    if name not in header.tensors:
        raise WeightsError(f"{path} lacks the tensor {name}; download it again")
    return header.tensors[name].shape[0]


def _rope_scaling(path: Path, header: GGUFHeader, fact: Fact, theta: float, head_dim: int) -> dict[str, Any] | None:
    if "rope_freqs.weight" in header.tensors:
        return _llama3_scaling(path, header, theta, head_dim)
    prefix = header.metadata["general.architecture"]
    kind = header.metadata.get(f"{prefix}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedModel(
            f"{path}: rope scaling {kind!r} cannot be read from GGUF; use the safetensors checkpoint"
        )
    scaling = {"rope_type": kind, "factor": float(fact("rope.scaling.factor", 1.0))}
    if kind == "yarn":
        context = fact("context_length", None)
        scaling["original_max_position_embeddings"] = fact("rope.scaling.original_context_length", context)
    return scaling


def _llama3_scaling(path: Path, header: GGUFHeader, theta: float, head_dim: int) -> dict[str, Any]:
    """The file stores the divisor of each rotary frequency; find the rule of Llama 3.1 that gives them."""
    tensor = header.tensors["rope_freqs.weight"]
    with path.open("rb") as file:
        file.seek(tensor.offset)
        divisors = struct.unpack(f"<{tensor.size // 4}f", file.read(tensor.size))
    scaling = {
        "rope_type": "llama3",
        "factor": float(max(divisors)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_divisors(scaling, theta, head_dim)
    if len(expected) != len(divisors) or any(
        not math.isclose(a, b, rel_tol=1e-3) for a, b in zip(expected, divisors, strict=True)
    ):
        raise UnsupportedModel(f"{path}: its rotary frequencies follow no known rule; use the safetensors checkpoint")
    return scaling


def llama3_divisors(scaling: dict[str, Any], theta: float, head_dim: int) -> list[float]:
    """What Llama 3.1's rule divides each rotary frequency by."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors
