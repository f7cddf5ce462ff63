"""The architecture of a model whose config.json names none."""

from __future__ import annotations

from dataclasses import replace

from tgi_core.errors import UnsupportedModel
from tgi_core.weights.source import ModelFiles


def name_architecture(files: ModelFiles) -> ModelFiles:
    """The same model with `architectures` in its configuration: its own, or what transformers has for its `model_type`.

    Raises:
        UnsupportedModel: there is neither.
    """
    if files.config.get("architectures"):
        return files
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    known = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    name = known.get(files.config.get("model_type", ""))
    if name is None:
        raise UnsupportedModel(
            "config.json names no `architectures`, and its model_type "
            f"{files.config.get('model_type')!r} is none that transformers knows; add the class name"
        )
    return replace(files, config={**files.config, "architectures": [name]})
