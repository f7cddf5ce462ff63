"""Finds the implementation of an architecture."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from tgi_core.errors import RegistrationConflict, UnsupportedModel
from tgi_core.kernels.select import rank
from tgi_core.plugins.manager import Plugins
from tgi_core.plugins.specs import ANY_DEVICE, ModelSpec


def offered_models(plugins: Plugins) -> Iterator[tuple[str, ModelSpec]]:
    """(plugin name, spec) of every registered implementation.  Imports no torch."""
    return plugins.registered("tgi_register_models", ModelSpec)


#: for architectures that nobody implements: the first way that can run a model is taken when it is loaded
FALLBACK = ModelSpec(
    architectures=(),
    target="tgi_core.models.fallback_loading:load_fallback",
    family="any other decoder",
    note="transformers' own model on the paged cache: batched, but without optimised kernels",
)
#: where transformers cannot replace the attention of a model
CACHED_FALLBACK = ModelSpec(
    architectures=(),
    target=FALLBACK.target,
    family="any other model",
    note="transformers' own model with its own cache: no chunked prefill, no prefix cache, no optimised kernels",
)
#: (way, what it runs)
FALLBACKS = (
    (FALLBACK, "what AutoModelForCausalLM knows, where its attention can be replaced"),
    (CACHED_FALLBACK, "what else AutoModelForCausalLM and AutoModelForSeq2SeqLM know"),
)


def select_model_or_fallback(
    plugins: Plugins, architecture: str, device: str, own_models: str = ""
) -> tuple[ModelSpec, str]:
    """As `select_model`, but for architectures that nobody implements the fallback, and why it was taken.

    Raises:
        UnsupportedModel: nobody implements it, and the device takes no fallback.
        RegistrationConflict: two implementations have the same rank.
    """
    try:
        return select_model(plugins, architecture, device, own_models), ""
    except UnsupportedModel as error:
        if own_models:
            raise
        return FALLBACK, str(error)


def select_model(plugins: Plugins, architecture: str, device: str, own_models: str = "") -> ModelSpec:
    """The highest ranked implementation of an architecture for a device.

    Args:
        own_models: see `DeviceProbe.own_models`.

    Raises:
        UnsupportedModel: nobody implements it.
        RegistrationConflict: two have the same rank.
    """
    devices = (device,) if own_models else (device, ANY_DEVICE)
    offers = [
        (provider, spec)
        for provider, spec in offered_models(plugins)
        if architecture in spec.architectures and spec.device in devices
    ]
    if not offers:
        raise UnsupportedModel(_nobody(plugins, architecture, device, own_models))
    offers.sort(key=lambda offer: rank(offer[1]), reverse=True)
    if len(offers) > 1 and rank(offers[0][1]) == rank(offers[1][1]):
        raise RegistrationConflict(
            f"{architecture}: offered by {offers[0][0]} and {offers[1][0]} with the same rank; "
            "disable one of them with --disable-plugin"
        )
    return offers[0][1]


def _nobody(plugins: Plugins, architecture: str, device: str, own_models: str) -> str:
    if own_models:
        own = {name for _, spec in offered_models(plugins) if spec.device == device for name in spec.architectures}
        return f"{architecture} cannot run on {device}: {own_models}; it runs {', '.join(sorted(own))}"
    known = sorted({name for _, spec in offered_models(plugins) for name in spec.architectures})
    near = get_close_matches(architecture, known, n=1)
    hint = f"; the nearest known one is {near[0]}" if near else ""
    return f"no installed plugin implements {architecture} on {device}{hint}. `tgi models` lists what is there"
