"""Any other decoder: transformers' own model, with its attention replaced by the engine's paged one.

Batching, chunked prefill and the prefix cache work as for any family; norms, projections and activations are
PyTorch's own.  See transformers' documentation of `AttentionInterface`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tgi_core.attention.base import AttentionBackend, AttentionSpec, ForwardContext
from tgi_core.errors import UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import CausalLM
from tgi_core.weights.reader import WeightReader

IMPLEMENTATION = "tgi_paged"  #: our name among transformers' attention implementations


@dataclass
class _Step:
    """What the attention function needs of the forward pass that calls it."""

    backend: AttentionBackend
    context: ForwardContext | None = None


class TransformersCausalLM(CausalLM):
    """What `AutoModelForCausalLM` makes of the model's folder."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self._step = _Step(build.attention)
        self._body_and_head = _load(build)
        attentions = _attention_modules(self._body_and_head, config)
        for layer, module in enumerate(attentions):
            module.__dict__["tgi_step"] = self._step
            build.attention.add_layer(_spec(config, layer, module))
        self._head, self._given = _head_alone(self._body_and_head)

    def load_weights(self, reader: WeightReader, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """transformers has loaded them already."""
        progress(1.0)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        self._step.context = context
        body = self._body_and_head.base_model
        output = body(input_ids=input_ids[None], position_ids=context.positions[None], use_cache=False)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        self._given.hidden = hidden[None]
        logits: Tensor = self._head(input_ids=hidden.new_zeros(1, len(hidden), dtype=torch.int64)).logits[0]
        return logits


def _load(build: BuildContext) -> Any:
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
    try:
        return AutoModelForCausalLM.from_pretrained(
            build.folder,
            dtype=build.dtype,
            attn_implementation=IMPLEMENTATION,
            trust_remote_code=build.trust_remote_code,
            local_files_only=True,
        ).eval()
    except (ValueError, ImportError, OSError, KeyError) as error:
        raise UnsupportedModel(f"transformers cannot load this model for the paged cache: {error}") from error


def _attention_modules(model: nn.Module, config: ModelConfig) -> list[nn.Module]:
    """The attention of every layer, in order.

    Raises:
        UnsupportedModel: they cannot be told apart.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{type(model).__name__} has no family in core, and transformers cannot replace its attention: "
            "it is not supported yet"
        )
    found = {}
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and "attention" in type(module).__name__.lower():
            found[layer] = module
    if sorted(found) != list(range(config.num_layers)):
        raise UnsupportedModel(f"{type(model).__name__} does not have one self-attention in each layer")
    return [found[layer] for layer in range(config.num_layers)]


def _spec(config: ModelConfig, layer: int, module: nn.Module) -> AttentionSpec:
    head_size = getattr(module, "head_dim", config.head_size)
    return AttentionSpec(
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_size=head_size,
        scale=getattr(module, "scaling", head_size**-0.5),
        window=getattr(module, "sliding_window", config.sliding_windows[layer]),
        soft_cap=config.raw.get("attn_logit_softcapping"),
    )


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, H, T, D], key and value [1, Hkv, T, D] -> [1, T, H, D]"""
    step: _Step = module.__dict__["tgi_step"]
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    spec = step.backend.specs[layer]
    scale, window = options.get("scaling") or spec.scale, options.get("sliding_window") or None
    if (window, query.shape[1], key.shape[1]) != (spec.window, spec.heads, spec.kv_heads) or scale != spec.scale:
        raise UnsupportedModel(f"layer {layer} attends otherwise than its configuration says")
    if step.context is None:
        raise UnsupportedModel("the model attends outside of a step")
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    return step.backend.forward(layer, q, k, v, step.context.attention)[None], None


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
