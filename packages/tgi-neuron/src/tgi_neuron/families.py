"""What optimum-neuron's decoders serve, and what of a checkpoint they would get wrong.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tgi_core.plugins.specs import ModelSpec

TARGET = "tgi_neuron.model:NeuronDecoder"
EXPLAIN = "tgi_neuron.plan:explain"
#: why other architectures are refused
OWN_MODELS = "the graphs that are compiled for it are optimum-neuron's, which has few families"

#: family -> (architectures, note)
FAMILIES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "Granite": (("GraniteForCausalLM",), ""),
    "Llama, Llama 2, Code Llama": (("LlamaForCausalLM", "LLaMAForCausalLM"), ""),
    "Llama 4": (("Llama4ForCausalLM",), "text only, of which all layers have rotary embeddings; Meta's have others"),
    "Mixtral": (("MixtralForCausalLM",), ""),
    "Phi-3": (("Phi3ForCausalLM",), "without longrope"),
    "Qwen2": (("Qwen2ForCausalLM",), ""),
    "Qwen3": (("Qwen3ForCausalLM",), ""),
    "Qwen3-MoE": (("Qwen3MoeForCausalLM",), ""),
    "SmolLM3": (("SmolLM3ForCausalLM",), ""),
}

Config = Mapping[str, Any]


def specs() -> list[ModelSpec]:
    """One implementation for all of them."""
    return [
        ModelSpec(
            architectures=names,
            target=TARGET,
            device="neuron",
            family=family,
            note=note,
            explain=EXPLAIN,
            optimised=False,  # not measured on a card
        )
        for family, (names, note) in FAMILIES.items()
    ]


def _odd_heads(config: Config) -> bool:
    """Whether heads have a size of their own."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return bool(size * config["num_attention_heads"] != config["hidden_size"])


def _rope_type(config: Config) -> str:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return scaling.get("rope_type", scaling.get("type", "default"))


def _computed_by_itself(config: Config) -> tuple[str, ...]:
    """Kinds of rotary embeddings that a family computes itself."""
    return ("default", "llama3") if config["model_type"] == "llama4_text" else ("default",)


def _window(config: Config) -> int:
    """Tokens that attention looks back, or that it has in one chunk; 0 = all."""
    if config["model_type"] == "llama4_text":
        return config.get("attention_chunk_size") or LLAMA4_CHUNK
    if config["model_type"].startswith("qwen") and not config.get("use_sliding_window"):
        return 0
    return config.get("sliding_window") or 0


def _leaves_some_unrotated(config: Config) -> bool:
    """Whether layers of a Llama 4 have no rotary embeddings; where nobody says, each fourth has none."""
    if config["model_type"] != "llama4_text":
        return False
    if marks := config.get("no_rope_layers"):
        return not all(marks)
    return bool(config["num_hidden_layers"] >= config.get("no_rope_layer_interval", LLAMA4_INTERVAL))


LLAMA4_CHUNK, LLAMA4_INTERVAL = 8192, 4  #: what its config.json need not say
SCALED = frozenset({"granite", "llama", "phi3"})  #: whose rotary embeddings are transformers'
LLAMA_LIKE = frozenset({"granite", "llama", "mixtral", "phi3", "qwen2"})

#: (what optimum-neuron 0.4.5 does not look at in a checkpoint's config.json, whether it is there)
UNFIT: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("quantised weights", lambda c: bool(c.get("quantization_config"))),
    ("heads of a size of their own", lambda c: c["model_type"] in LLAMA_LIKE and _odd_heads(c)),
    (
        "biases of attention's projections",
        lambda c: c["model_type"] in {"llama", "granite", "qwen3", "qwen3_moe", "smollm3"} and c.get("attention_bias"),
    ),
    ("rotary embeddings of a part of each head", lambda c: c.get("partial_rotary_factor", 1.0) != 1.0),
    ("rotary embeddings that change with the length", lambda c: _rope_type(c) in {"longrope", "dynamic"}),
    (
        "scaled rotary embeddings",
        lambda c: c["model_type"] not in SCALED and _rope_type(c) not in _computed_by_itself(c),
    ),
    ("layers without rotary embeddings", _leaves_some_unrotated),
    (
        "weights of experts that are not normalised",
        lambda c: c["model_type"] == "qwen3_moe" and not c.get("norm_topk_prob"),
    ),
)


def why_unfit(config: Config) -> str:
    """What of a config.json would be ignored, so that the model would say something else; "" if nothing."""
    return next((what for what, is_there in UNFIT if is_there(config)), "")


def why_not_on_device(config: Config, cores: int) -> str:
    """Why graphs of this model may not sample; "" if they may."""
    if config["model_type"] == "qwen3" and cores == 2:
        return "with two cores the Neuron runtime gives wrong tokens for Qwen3, as optimum-neuron warns"
    return ""


def longest(config: Config) -> int:
    """Tokens of a sequence that are computed right: positions, or the window that is not looked at."""
    positions = int(config.get("max_position_embeddings") or 0)
    window = _window(config)
    return min(positions, window) if window else positions
