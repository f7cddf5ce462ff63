"""Any other decoder: transformers' own model, with its attention replaced by the engine's paged one.

Batching, chunked prefill and the prefix cache work as for any family; norms, projections and activations are
PyTorch's own.  See transformers' documentation of `AttentionInterface`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tgi_core.attention.base import AttentionBackend, AttentionSpec, ForwardContext
from tgi_core.errors import UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM
from tgi_core.models.cache_layout import CacheLayout
from tgi_core.models.cached_decoder import cache_of
from tgi_core.models.select import FALLBACK
from tgi_core.weights.reader import WeightReader

IMPLEMENTATION = "tgi_paged"  #: our name among transformers' attention implementations
#: what models tell attention functions and backends do, or need not do: nothing is dropped, positions are known
KNOWN = frozenset(
    {"scaling", "sliding_window", "softcap", "is_causal", "dropout", "position_ids", "cache_position", "use_cache"}
)


@dataclass
class _Step:
    """What the attention function needs of the forward pass that calls it."""

    backend: AttentionBackend
    context: ForwardContext | None = None  #: None while the model is tried out
    calls: list[tuple[int, AttentionSpec]] = field(default_factory=list)  #: (layer, what it asked for) of a trial


class PagedTransformersLM(CausalLM):
    """What `AutoModelForCausalLM` makes of the model's folder.

    Args:
        model: loaded with `IMPLEMENTATION` as its attention.

    Raises:
        UnsupportedModel: it does something else than attention over its past, or attention that no backend has.
    """

    note = FALLBACK.note
    waits_for_device = True  #: as far as anybody knows

    def __init__(self, config: ModelConfig, build: BuildContext, model: Any) -> None:
        super().__init__(config, build)
        self._body_and_head = model
        self._step = _Step(build.attention)
        for module in model.modules():
            module.__dict__["tgi_step"] = self._step
        self._head, self._given = _head_alone(model)
        for spec in self._tried():
            build.attention.add_layer(spec)

    def load_weights(self, reader: WeightReader, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """transformers has loaded them already."""
        progress(1.0)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        self._step.context = context
        return self._hidden(input_ids, context.positions)

    def logits(self, hidden: Tensor) -> Tensor:
        self._given.hidden = hidden[None]
        logits: Tensor = self._head(input_ids=hidden.new_zeros(1, len(hidden), dtype=torch.int64)).logits[0]
        return logits

    def _hidden(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        body = self._body_and_head.base_model
        output = body(input_ids=input_ids[None], position_ids=positions[None], use_cache=False)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def _tried(self) -> list[AttentionSpec]:
        """The attention of each layer, as the layers ask for it when the model runs."""
        model = self._body_and_head
        name = type(model).__name__
        if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
            raise UnsupportedModel(f"{name} finds positions by itself")
        ids = torch.ones(3, dtype=torch.int64, device=model.device)
        try:
            layout = CacheLayout(
                lambda rows, length, _: cache_of(model(ids.new_ones(rows, length), use_cache=True, return_dict=True))
            )
            self._step.calls.clear()
            apart = self.logits(self._hidden(ids, torch.arange(3, device=ids.device)))
            calls, whole = list(self._step.calls), model(ids[None], use_cache=False).logits[0]
        except UnsupportedModel:
            raise
        except Exception as error:  # it is a stranger's code
            raise UnsupportedModel(f"{name} does not run on the paged cache: {error}") from error
        if layout.sequence_bytes:
            raise UnsupportedModel(f"{name} keeps more of the past than keys and values")
        if [layer for layer, _ in calls] != list(range(self.config.num_layers)):
            raise UnsupportedModel(f"{name} does not have one self-attention in each layer")
        if not torch.allclose(apart, whole, rtol=1e-2, atol=1e-2):
            raise UnsupportedModel(f"the head of {name} does not run apart from its body")
        specs = [spec for _, spec in calls]
        if any(_differs(spec, self.config) for spec in specs):
            raise UnsupportedModel(f"{name} attends otherwise than its configuration says")
        return specs


def _differs(spec: AttentionSpec, config: ModelConfig) -> bool:
    """Whether a layer needs what the attention backend was not chosen for."""
    return (
        spec.head_size != config.head_size
        or (spec.window is not None and not any(config.sliding_windows))
        or (spec.soft_cap is not None and not config.raw.get("attn_logit_softcapping"))
    )


def register_attention() -> None:
    """Make `IMPLEMENTATION` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, H, T, D], key and value [1, Hkv, T, D] -> [1, T, H, D]"""
    step: _Step = module.__dict__["tgi_step"]
    spec = _asked(query, key, value, attention_mask, options)
    layer = int(getattr(module, "layer_idx", len(step.calls)))
    if step.context is None:
        step.calls.append((layer, spec))
        return torch.zeros_like(query).transpose(1, 2), None
    if spec != step.backend.specs[layer]:
        raise UnsupportedModel(f"layer {layer} attends otherwise than when the model was loaded")
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    return step.backend.forward(layer, q, k, v, step.context.attention)[None], None


def _asked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> AttentionSpec:
    """What a layer asks of attention.

    Raises:
        UnsupportedModel: no backend has it.
    """
    other = sorted(name for name in options.keys() - KNOWN if options[name] is not None and options[name] is not False)
    if mask is not None:
        other.append("a mask of its own")
    if value.shape[-1] != query.shape[-1]:
        other.append("values of another size than keys")
    if options.get("is_causal") is False:
        other.append("tokens that see those after them")
    if other:
        raise UnsupportedModel(f"attention with {', '.join(other)} is not what the paged cache has")
    return AttentionSpec(
        heads=query.shape[1],
        kv_heads=key.shape[1],
        head_size=query.shape[-1],
        scale=float(options.get("scaling") or query.shape[-1] ** -0.5),
        window=options.get("sliding_window") or None,
        soft_cap=options.get("softcap") or None,
    )


def _no_mask(*arguments: Any, **options: Any) -> None:
    """Causality and windows are the attention backend's business."""


class _Given(nn.Module):
    """Stands where the body stands, and returns hidden states that are known already."""

    hidden: Tensor

    def forward(self, *arguments: Any, **options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=self.hidden)


def _head_alone(model: Any) -> tuple[Any, _Given]:
    """A twin of the model that runs its head only, with whatever scales or caps the logits; it shares all weights."""
    twin, given = copy.copy(model), _Given()
    twin.__dict__ = dict(model.__dict__)
    twin._modules = {**model._modules, model.base_model_prefix: given}
    return twin, given
