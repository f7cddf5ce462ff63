"""Loads models: optimum-habana's, where they say what transformers says, else core's."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

from tgi_core.errors import ConfigError, DeviceUnavailable, UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import LanguageModel
from tgi_core.models.families import FAMILIES
from tgi_core.plugins.specs import resolve
from tgi_gaudi.families import why_core, why_divided, why_not_float8
from tgi_gaudi.float8 import quantize
from tgi_gaudi.optimum.model import SlotModel
from tgi_gaudi.settings import read_settings

log = logging.getLogger(__name__)


def load_model(config: ModelConfig, build: BuildContext) -> LanguageModel:
    """The model of a folder: optimum-habana's, or core's where that is wrong for such a configuration.

    Raises:
        ConfigError: QUANT_CONFIG asks for float8, which such a model has not.
        DeviceUnavailable: optimum-habana cannot be imported.
    """
    settings = read_settings()
    if why := why_core(config, settings) or why_divided(build.group.size):
        return _core_model(config, build, why)
    if settings.quant_config is not None and (why := why_not_float8(config, settings)):
        raise ConfigError(f"QUANT_CONFIG: {why}")
    adapt_transformers()
    try:
        own = _load(config, build)
        if settings.quant_config is not None:
            own = quantize(own, settings.quant_config)
        return SlotModel(config, build, own, settings)
    except UnsupportedModel as error:
        return _core_model(config, build, str(error))


def _core_model(config: ModelConfig, build: BuildContext, why: str) -> LanguageModel:
    """Core's implementation of an architecture."""
    if read_settings().quant_config is not None:
        raise ConfigError(f"QUANT_CONFIG: float8 is for optimum-habana's models, and core's runs this one: {why}")
    log.warning("%s: core's model runs it: %s", config.architecture, why)
    spec = next(spec for spec in FAMILIES if config.architecture in spec.architectures)
    model: LanguageModel = resolve(spec.target)(config, build)
    return model


def adapt_transformers() -> None:
    """Let transformers make Gaudi's classes, in all of this process and for good.

    Raises:
        DeviceUnavailable: optimum-habana cannot be imported.
    """
    here = str(Path(sys.executable).parent)
    searched = os.environ.get("PATH", "").split(os.pathsep)
    if searched[0] != here:  # it asks the `pip` that a shell finds for the version of Habana's plugin
        os.environ["PATH"] = os.pathsep.join([here, *searched])
    try:
        modelling = importlib.import_module("optimum.habana.transformers.modeling_utils")
    except Exception as error:  # it runs commands and reads versions while it is imported
        raise DeviceUnavailable(
            f"optimum-habana cannot be imported ({error}); "
            "pip install 'tgi-gaudi[optimum]' in an environment of its own"
        ) from error
    modelling.adapt_transformers_to_gaudi()


def _load(config: ModelConfig, build: BuildContext) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(build.folder, torch_dtype=build.dtype, local_files_only=True)
    except Exception as error:  # anything may go wrong in another package's code
        raise UnsupportedModel(f"optimum-habana cannot load this model: {error}") from error
    return model.eval().to(build.device)
