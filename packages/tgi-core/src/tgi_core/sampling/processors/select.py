"""The logits processors of all plugins, in order.  Imports no torch until they are resolved."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from tgi_core.errors import RegistrationConflict
from tgi_core.plugins.manager import Plugins
from tgi_core.plugins.specs import JSON_TYPES, LogitsProcessorSpec, resolve
from tgi_core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from tgi_core.sampling.processors.base import LogitsProcessor


def offered_processors(plugins: Plugins) -> list[LogitsProcessorSpec]:
    """Every registered processor, in the order in which they change logits.

    Raises:
        RegistrationConflict: two have the same place, or read the same request field.
    """
    offers = list(plugins.registered("tgi_register_logits_processors", LogitsProcessorSpec))
    offers.sort(key=lambda offer: offer[1].order)
    for (first, a), (second, b) in pairwise(offers):
        if a.order == b.order:
            raise RegistrationConflict(
                f"logits processors {a.name} of {first} and {b.name} of {second} have the same order {a.order}; "
                "disable one of the plugins with --disable-plugin"
            )
    owners = dict.fromkeys((field.name for field in msgspec.structs.fields(SamplingParams)), "the core")
    for provider, spec in offers:
        for name, kind in spec.parameters.items():
            if name in owners:
                raise RegistrationConflict(
                    f"logits processor {spec.name} of {provider} reads the request field {name}, "
                    f"which belongs to {owners[name]}"
                )
            if kind not in JSON_TYPES:
                raise RegistrationConflict(
                    f"logits processor {spec.name} of {provider}: {kind} is no JSON type; "
                    f"there are {', '.join(JSON_TYPES)}"
                )
            owners[name] = provider
    return [spec for _, spec in offers]


def extra_parameters(specs: Sequence[LogitsProcessorSpec]) -> dict[str, str]:
    """The request fields that these processors add: name -> JSON type."""
    return {name: kind for spec in specs for name, kind in spec.parameters.items()}


def load_processors(specs: Sequence[LogitsProcessorSpec]) -> tuple[type[LogitsProcessor], ...]:
    """Their classes, in the same order."""
    return tuple(resolve(spec.target) for spec in specs)
