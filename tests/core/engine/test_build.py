"""What is known of a model before its weights are loaded."""

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine import build
from tgi_core.engine.engine import Engine
from tgi_core.testing.tiny import make_checkpoint


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_memory_is_planned_for_weights_as_they_are_kept(tmp_path, monkeypatch, quantize, tied):
    told = []
    resolve = build.resolve
    monkeypatch.setattr(build, "resolve", lambda *parts, **more: told.append(parts[3]) or resolve(*parts, **more))
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "tie_word_embeddings": tied}
    folder = make_checkpoint(tmp_path, "llama", **sizes)
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="bfloat16", quantize=quantize))
    kept = {}
    for module in engine.runner.model.modules():
        for tensor in tensors_of((getattr(module, "packed", None), *vars(module).values(), *module.parameters())):
            kept[tensor.data_ptr()] = tensor.nbytes
    assert told[0].weight_bytes == pytest.approx(sum(kept.values()), rel=0.15)
