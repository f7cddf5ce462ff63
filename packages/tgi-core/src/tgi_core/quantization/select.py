"""Which quantization a model runs with: what its checkpoint says, or what a person wishes.  Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from tgi_core.errors import ConfigError, RegistrationConflict, UnsupportedModel
from tgi_core.plugins.manager import Plugins
from tgi_core.plugins.specs import QuantizationSpec, resolve
from tgi_core.quantization.registry import QUANTIZATIONS

NOTHING: Mapping[str, str] = {}
_Offer = tuple[str, QuantizationSpec]  # with its plugin


def offered_quantizations(plugins: Plugins) -> Iterator[tuple[str, QuantizationSpec]]:
    """(plugin name, spec) of every registered quantization."""
    return plugins.registered("tgi_register_quantization", QuantizationSpec)


def find_quantization(plugins: Plugins, name: str) -> QuantizationSpec:
    """The quantization that a person named.

    Raises:
        ConfigError: nobody offers it.
        RegistrationConflict: two plugins do.
    """
    offers = list(offered_quantizations(plugins))
    named = _preferred([(provider, spec) for provider, spec in offers if spec.name == name])
    if len(named) > 1:
        raise RegistrationConflict(
            f"--quantize {name}: offered by {named[0][0]} and {named[1][0]}; disable one with --disable-plugin"
        )
    if not named:
        names = sorted({spec.name for _, spec in offers})
        near = get_close_matches(name, names, n=1)
        hint = f"; the nearest one is {near[0]}" if near else ""
        raise ConfigError(f"--quantize {name} is not supported{hint}. There are: {', '.join(names) or 'none'}")
    return named[0][1]


def select_quantization(
    plugins: Plugins, wish: str | None, config: Mapping[str, Any], refused: Mapping[str, str] = NOTHING
) -> QuantizationSpec | None:
    """What reads the weights of a model with this config.json; None where they are and stay plain.

    Args:
        refused: see `Capabilities.refused_quantizations`.

    Raises:
        ConfigError: the wish is unknown, contradicts the checkpoint, or the device refuses it.
        UnsupportedModel: nobody reads the checkpoint, or the device refuses it.
        RegistrationConflict: two plugins do.
    """
    stored = config.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    if isinstance(method, str) and method in refused:
        raise UnsupportedModel(f"the weights are quantised ({method}): {refused[method]}")
    if wish and wish in refused:
        raise ConfigError(f"--quantize {wish}: {refused[wish]}")
    wished = find_quantization(plugins, wish) if wish else None
    if not stored:
        if wished and wished.matches:
            raise ConfigError(f"--quantize {wish} reads checkpoints that are stored so, and this one is not")
        return wished
    readers = _preferred(
        [
            (provider, spec)
            for provider, spec in offered_quantizations(plugins)
            if isinstance(stored, Mapping) and spec.matches and resolve(spec.matches)(stored)
        ]
    )
    if not readers:
        raise UnsupportedModel(
            f"the weights are quantised ({method}), which no installed plugin reads; "
            "use the original checkpoint or a GGUF file"
        )
    if wished and wished not in [spec for _, spec in readers]:
        raise ConfigError(f"--quantize {wish}: the checkpoint is quantised already ({method}); leave it out")
    if not wished and len(readers) > 1:
        raise RegistrationConflict(
            f"quantised weights ({method}) are read by {readers[0][1].name} of {readers[0][0]} and "
            f"{readers[1][1].name} of {readers[1][0]}; choose with --quantize NAME"
        )
    return wished or readers[0][1]


def _preferred(offers: list[_Offer]) -> list[_Offer]:
    """Those of plugins, if there are any: they know a device, as core's own do not."""
    return [(provider, spec) for provider, spec in offers if spec not in QUANTIZATIONS] or offers
