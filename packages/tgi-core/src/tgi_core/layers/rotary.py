"""Rotary position embedding and the rules that stretch it to longer contexts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tgi_core.errors import UnsupportedModel
from tgi_core.kernels.ops import Frequencies, LateFrequencies
from tgi_core.layers.build import BuildContext
from tgi_core.model_config import RotaryConfig


class RotaryEmbedding:
    """positions [T] -> cos, sin [T, R/2] in float32.

    Raises:
        UnsupportedModel: the rule is not known, or config.json lacks one of its parameters.
    """

    def __init__(self, config: RotaryConfig, build: BuildContext) -> None:
        if config.rule not in RULES:
            known = ", ".join(sorted(RULES))
            raise UnsupportedModel(f"rotary scaling rule {config.rule!r} is not implemented; known are {known}")
        try:
            found = RULES[config.rule](config)
        except KeyError as error:
            raise UnsupportedModel(
                f"rotary scaling rule {config.rule!r} needs {error.args[0]!r} in config.json"
            ) from None
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UnsupportedModel(f"config.json's rotary scaling is malformed ({error}); download it again") from error
        late = found.late and found.late._replace(inverse=found.late.inverse.to(build.device))
        self.frequencies = found._replace(inverse=found.inverse.to(build.device), late=late)
        self.kernels = build.kernels

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernels.angles(positions, self.frequencies)


def _default(config: RotaryConfig) -> Frequencies:
    return Frequencies(1.0 / _wavelengths(config))


def _wavelengths(config: RotaryConfig) -> Tensor:
    """[R/2], over two pi."""
    return config.theta ** (torch.arange(0, config.size, 2).float() / config.size)


def _linear(config: RotaryConfig) -> Frequencies:
    """All positions divided by the factor (arXiv 2306.15595)."""
    return Frequencies(_default(config).inverse / config.parameters["factor"])


def _dynamic(config: RotaryConfig) -> Frequencies:
    """A larger theta for a longer context ("NTK-aware scaling").

    The context is the longest that the model is served with, not the length of each sequence: keys of one prefix are
    the same in every sequence.
    """
    p = config.parameters
    grown = config.max_positions / p["original_max_position_embeddings"]
    theta = config.theta * (p["factor"] * grown - (p["factor"] - 1)) ** (config.size / (config.size - 2))
    return _default(replace(config, theta=theta))


def _llama3(config: RotaryConfig) -> Frequencies:
    """Long wavelengths divided by the factor, short ones kept, a ramp between (Llama 3.1's model card)."""
    inverse, p = _default(config).inverse, config.parameters
    low, high, old = p["low_freq_factor"], p["high_freq_factor"], p["original_max_position_embeddings"]
    turns = old * inverse / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return Frequencies(inverse * (keep + (1 - keep) / p["factor"]))


def _yarn(config: RotaryConfig) -> Frequencies:
    """Interpolation by wavelength, and a temperature on the scores (arXiv 2309.00071)."""
    p, old = config.parameters, config.parameters["original_max_position_embeddings"]
    factor, attention = p["factor"] or config.max_positions / old, p.get("attention_factor")

    def dimension(turns: float) -> float:
        return config.size * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = dimension(p.get("beta_fast") or 32), dimension(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.size - 1)
    ramp = ((torch.arange(config.size // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    inverse = _default(config).inverse
    if attention is None:
        scale, all_dims = p.get("mscale"), p.get("mscale_all_dim")
        attention = _mscale(factor, scale) / _mscale(factor, all_dims) if scale and all_dims else _mscale(factor, 1.0)
    return Frequencies(inverse / factor * ramp + inverse * (1 - ramp), float(attention))


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(config: RotaryConfig) -> Frequencies:
    """Every frequency divided by a factor of its own (arXiv 2402.13753).

    The short list counts for positions that the model was trained on, the long one for those beyond: keys of one
    prefix are the same in every sequence, and a sequence that fits the trained context is as it was before.
    """
    p, old = config.parameters, config.parameters["original_max_position_embeddings"]
    waves, attention = _wavelengths(config), p.get("attention_factor")
    short, long = torch.tensor(p["short_factor"]), torch.tensor(p["long_factor"])
    for factors in (short, long):
        if len(factors) != len(waves):
            raise ValueError(f"{len(factors)} factors for {len(waves)} frequencies")
    if attention is None:
        grown = p.get("factor") or config.max_positions / old
        attention = math.sqrt(1 + math.log(grown) / math.log(old)) if grown > 1 else 1.0
    return Frequencies(1.0 / (short * waves), float(attention), LateFrequencies(old, 1.0 / (long * waves)))


RULES: dict[str, Callable[[RotaryConfig], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def pairs_to_halves(head_size: int, rotated: int) -> Tensor:
    """Which of a head's dimensions [head_size] come where, so that pairs (0, 1), (2, 3), ... rotate as halves do.

    Put queries and keys into this order and their products stay what they were.
    """
    order = torch.arange(head_size)
    order[:rotated] = torch.cat((torch.arange(0, rotated, 2), torch.arange(1, rotated, 2)))
    return order
