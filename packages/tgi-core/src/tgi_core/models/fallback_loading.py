"""Loads models with transformers' own code, and finds out what they can do."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from tgi_core.errors import ConfigError, UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import LanguageModel
from tgi_core.models.fallback import IMPLEMENTATION, PagedTransformersLM, register_attention
from tgi_core.models.fallback_cached import CachedTransformersLM
from tgi_core.models.fallback_config import OWN_CODE, auto_class, needs_trust, read_config

SHOWN = 3  #: names of missing tensors in an error


def load_fallback(config: ModelConfig, build: BuildContext) -> LanguageModel:
    """The model of a folder, on the engine's paged cache where its attention can be replaced, else with its own cache.

    Raises:
        UnsupportedModel: transformers cannot load it, or nothing here can run it.
    """
    settings = read_config(config.raw, build.folder, build.trust_remote_code)
    kind = auto_class(config.raw, settings, build.trust_remote_code)
    if not _attention_is_replaceable(kind, settings, build):
        model = _load(kind, config, build, **_placement(build))
        return _with_own_cache(config, build, model, f"transformers cannot replace {_name(model)}'s attention")
    register_attention()
    model = _load(kind, config, build, attn_implementation=IMPLEMENTATION)
    try:
        return PagedTransformersLM(config, build, model)
    except UnsupportedModel as error:
        model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
        return _with_own_cache(config, build, model, str(error))


def _with_own_cache(config: ModelConfig, build: BuildContext, model: Any, reason: str) -> LanguageModel:
    try:
        return CachedTransformersLM(config, build, model, reason)
    except UnsupportedModel:
        raise
    except Exception as error:  # anything may go wrong in a stranger's code
        raise UnsupportedModel(f"{_name(model)} does not run on a few tokens: {error}") from error


def _attention_is_replaceable(kind: Any, settings: Any, build: BuildContext) -> bool:
    """Whether the model's class says that any attention function will do for it."""
    if getattr(settings, "is_encoder_decoder", False):
        return False
    try:
        with torch.device("meta"):
            empty = kind.from_config(settings, trust_remote_code=build.trust_remote_code)
    except Exception as error:  # anything may go wrong in a model's own code
        raise UnsupportedModel(f"transformers cannot make this model: {error}") from error
    return bool(getattr(empty, "_supports_attention_backend", False))


def _placement(build: BuildContext) -> dict[str, str]:
    """How a model with a cache of its own is spread where there are several devices.

    Raises:
        ConfigError: accelerate, which transformers needs for that, is not installed.
    """
    if build.devices == 1:
        return {}
    if find_spec("accelerate") is None:
        raise ConfigError(
            f"transformers spreads this model over {build.devices} devices, which needs a package: "
            "pip install accelerate, or let it see one device only"
        )
    return {"device_map": "auto"}


def _load(kind: Any, config: ModelConfig, build: BuildContext, **options: Any) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, found = kind.from_pretrained(
            build.folder,
            **{_dtype_argument(): build.dtype},
            trust_remote_code=build.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # anything may go wrong in a model's own code
        raise UnsupportedModel(f"transformers cannot load this model: {error}") from error
    if missing := sorted(found.get("missing_keys") or ()):
        hint = f"; {needs_trust(config.raw)}" if config.raw.get(OWN_CODE) and not build.trust_remote_code else ""
        raise UnsupportedModel(
            f"the checkpoint lacks {len(missing)} tensors of {_name(model)}: {', '.join(missing[:SHOWN])}{hint}"
        )
    return model.eval() if options.get("device_map") else model.eval().to(build.device)


def _dtype_argument() -> str:
    """What transformers calls the dtype of a model that it loads: `torch_dtype` before 4.56."""
    from transformers import __version__

    major, minor, *_ = __version__.split(".")
    return "dtype" if (int(major), int(minor)) >= (4, 56) else "torch_dtype"


def _name(model: Any) -> str:
    return type(model).__name__
