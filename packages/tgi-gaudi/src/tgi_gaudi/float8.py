"""Weights and activations in float8, by Intel Neural Compressor, as QUANT_CONFIG says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tgi_core.errors import ConfigError

MEASURES = (
    "QUANT_CONFIG={}: it measures, which is done before a model is served, with optimum-habana's "
    "examples/text-generation/run_lm_eval.py; then serve with a configuration whose mode is QUANTIZE"
)


def quantize(model: Any, config: Path) -> Any:
    """The model with layers that multiply in float8, by what was measured before.

    Raises:
        ConfigError: the compressor is missing, does not take the configuration, or is asked to measure.
    """
    try:
        compressor = importlib.import_module("neural_compressor.torch.quantization")
    except ImportError as error:
        raise ConfigError(
            f"QUANT_CONFIG: float8 needs Intel Neural Compressor ({error}); "
            "pip install neural_compressor_pt, or leave it out"
        ) from error
    try:
        settings = compressor.FP8Config.from_json_file(str(config))
        if settings.measure:
            raise ConfigError(MEASURES.format(config))
        model = compressor.convert(model, settings)
    except ConfigError:
        raise
    except Exception as error:  # anything may go wrong in another package's code
        raise ConfigError(f"QUANT_CONFIG={config}: {type(error).__name__}: {error}") from error
    importlib.import_module("habana_frameworks.torch.core").hpu_initialize(model, mark_only_scales_as_const=True)
    return model
