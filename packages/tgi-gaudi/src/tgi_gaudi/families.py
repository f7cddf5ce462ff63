"""Who runs a family on Gaudi, and why: one table.  Imports no torch.

optimum-habana's classes run on the CPU too, behind a stand-in for Habana's software; there their tokens were compared
with transformers', configuration by configuration.  What is wrong there does not depend on the card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tgi_core.model_config import ModelConfig
from tgi_core.models.families import FAMILIES
from tgi_core.plugins.specs import ModelSpec
from tgi_gaudi.settings import GaudiSettings

TARGET = "tgi_gaudi.loading:load_model"
OTHERWISE = "says something else than transformers"
NOT_COMPARED_IN_FLOAT8 = "has not been compared with the compressor's own"
NOT_COMPARED = "has no such name, or has not been compared with transformers"

#: architectures that optimum-habana runs; of all others core's models are run
OPTIMUM_ARCHITECTURES = (
    "FalconForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "LlamaForCausalLM", "MistralForCausalLM",
    "MixtralForCausalLM", "MptForCausalLM", "PhiForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM",
)  # fmt: skip

#: those of them whose tokens in float8 were compared with Intel Neural Compressor's own
FLOAT8_ARCHITECTURES = (
    "GPTNeoXForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "MptForCausalLM", "PhiForCausalLM",
    "Qwen2ForCausalLM", "Qwen3ForCausalLM",
)  # fmt: skip

#: architecture -> what is wrong with optimum-habana's model
WRONG: Mapping[str, str] = {
    "BloomForCausalLM": "keeps keys and values in another layout than slots",
    "CohereForCausalLM": "does not run with the transformers that it asks for",
    "Gemma2ForCausalLM": OTHERWISE,
    "Gemma3ForCausalLM": OTHERWISE,
    "GemmaForCausalLM": "adds the residual after the norm",
    "GPTBigCodeForCausalLM": "keeps keys and values in one tensor, which has no slots",
    "GPTJForCausalLM": "rounds queries and keys to bfloat16, whatever the dtype is",
    "GraniteForCausalLM": "does not decode on a static cache",
    "Olmo2ForCausalLM": "does not decode on a static cache",
    "OPTForCausalLM": "decodes with the position of the next token",
    "Phi3ForCausalLM": "does not decode on a static cache",
    "T5ForConditionalGeneration": "has no slots for the sources of an encoder",
    "MT5ForConditionalGeneration": "has no slots for the sources of an encoder",
    "UMT5ForConditionalGeneration": "has no slots for the sources of an encoder",
}


@dataclass(frozen=True)
class Exemption:
    """Configurations of a family that core runs although optimum-habana runs the family."""

    architectures: tuple[str, ...]
    where: str  #: a person's words for them
    wrong: str  #: with optimum-habana's model
    holds: Callable[[ModelConfig, GaudiSettings], bool]


def _needs_flash(config: ModelConfig, settings: GaudiSettings) -> bool:
    return not settings.use_flash_attention


def _grouped_falcon(config: ModelConfig, settings: GaudiSettings) -> bool:
    """Grouped heads go wrong without flash attention, and with ALiBi."""
    grouped = bool(config.raw.get("new_decoder_architecture"))
    return grouped and (bool(config.raw.get("alibi")) or not settings.use_flash_attention)


def _has_scale(config: ModelConfig, settings: GaudiSettings) -> bool:
    return settings.use_flash_attention and (config.raw.get("attn_config") or {}).get("softmax_scale") is not None


EXEMPTIONS = (
    Exemption(
        (
            "MistralForCausalLM",
            "MixtralForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen2MoeForCausalLM",
            "Qwen3ForCausalLM",
            "Qwen3MoeForCausalLM",
            "Starcoder2ForCausalLM",
        ),
        "with a sliding window",
        OTHERWISE,
        lambda config, settings: any(config.sliding_windows),
    ),
    Exemption(
        ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"),
        "with linear or dynamic rotary scaling",
        OTHERWISE,
        lambda config, settings: config.rotary.rule in ("linear", "dynamic"),
    ),
    Exemption(
        ("LlamaForCausalLM",),
        "with a head size of its own",
        "cannot load the weights",
        lambda config, settings: config.head_size * config.num_heads != config.hidden_size,
    ),
    Exemption(
        ("PhiForCausalLM",),
        "with grouped heads",
        "does not run",
        lambda config, settings: config.num_kv_heads != config.num_heads,
    ),
    Exemption(
        ("FalconForCausalLM",),
        "of the new architecture, with ALiBi or unless USE_FLASH_ATTENTION is set",
        "does not decode",
        _grouped_falcon,
    ),
    Exemption(("Starcoder2ForCausalLM",), "unless USE_FLASH_ATTENTION is set", "does not run", _needs_flash),
    Exemption(
        ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
        "with layers that have no experts (`mlp_only_layers`)",
        OTHERWISE,
        lambda config, settings: bool(config.raw.get("mlp_only_layers")),
    ),
    Exemption(
        ("MptForCausalLM",), "with a softmax scale, where USE_FLASH_ATTENTION is set", "leaves it out", _has_scale
    ),
)


def why_core(config: ModelConfig, settings: GaudiSettings) -> str:
    """Why core's model runs this one; "" if optimum-habana's does."""
    name = config.architecture
    if name not in OPTIMUM_ARCHITECTURES:
        return f"optimum-habana's {WRONG.get(name, NOT_COMPARED)}"
    found = (e for e in EXEMPTIONS if name in e.architectures and e.holds(config, settings))
    return next((f"{exemption.where}: optimum-habana's {exemption.wrong}" for exemption in found), "")


def why_divided(cards: int) -> str:
    """Why core's model runs any one over so many cards; "" on one."""
    return f"divided over {cards} cards: optimum-habana's is whole" if cards > 1 else ""


def why_not_float8(config: ModelConfig, settings: GaudiSettings) -> str:
    """Why optimum-habana's model is not run in float8; "" if it is."""
    if config.architecture not in FLOAT8_ARCHITECTURES:
        return f"{config.architecture} in float8 {NOT_COMPARED_IN_FLOAT8}; leave it out, or serve one of " + ", ".join(
            FLOAT8_ARCHITECTURES
        )
    if settings.use_flash_attention:
        return f"flash attention in float8 {NOT_COMPARED_IN_FLOAT8}; leave USE_FLASH_ATTENTION out"
    return ""


def gaudi_models() -> tuple[ModelSpec, ...]:
    """Core's families, as they run here."""
    return tuple(spec for family in FAMILIES for spec in _on_gaudi(family))


def _on_gaudi(family: ModelSpec) -> list[ModelSpec]:
    by_optimum = tuple(name for name in family.architectures if name in OPTIMUM_ARCHITECTURES)
    others = tuple(name for name in family.architectures if name not in OPTIMUM_ARCHITECTURES)
    here = replace(family, device="gaudi", target=TARGET, optimised=False)
    specs = []
    if by_optimum:
        own = (e for e in EXEMPTIONS if by_optimum[0] in e.architectures)
        but = ", ".join(exemption.where for exemption in own)
        note = "optimum-habana's model" + (f"; core's {but}" if but else "")
        specs.append(replace(here, architectures=by_optimum, note=note))
    if others:
        why = WRONG.get(others[0], NOT_COMPARED)
        specs.append(replace(here, architectures=others, note=f"core's model, as optimum-habana's {why}"))
    return specs
