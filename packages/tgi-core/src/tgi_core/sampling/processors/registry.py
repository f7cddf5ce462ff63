"""The core's logits processors, in TGI's order.  Imports no torch."""

from __future__ import annotations

from tgi_core.plugins.specs import LogitsProcessorSpec

_HERE = "tgi_core.sampling.processors"

#: order -> (name, target); 500 is the place of grammar masks
_IN_ORDER = {
    100: ("watermark", "watermark:Watermark"),
    200: ("penalties", "penalties:Penalties"),
    600: ("min_new_tokens", "bias:MinimumLength"),
    610: ("forced_tokens", "rules:ForcedTokens"),
    620: ("suppressed_tokens", "rules:SuppressedTokens"),
    700: ("logit_bias", "bias:LogitBias"),
    800: ("temperature", "temperature:Temperature"),
    900: ("top_k", "filters:TopK"),
    1000: ("top_p", "filters:TopP"),
    1100: ("min_p", "filters:MinP"),
    1200: ("typical_p", "filters:TypicalP"),
}

LOGITS_PROCESSORS = tuple(
    LogitsProcessorSpec(name=name, target=f"{_HERE}.{target}", order=order)
    for order, (name, target) in _IN_ORDER.items()
)
