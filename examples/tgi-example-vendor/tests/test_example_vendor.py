"""Beside the contract: what only this device does."""

import torch
from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint


def test_a_shape_is_compiled_once(tmp_path):
    engine = Engine(EngineConfig(model_id=str(make_checkpoint(tmp_path, "llama")), device="example-vendor"))
    params = SamplingParams(max_new_tokens=5, ignore_eos=True)
    prompts = [[5, 6, 7], [8] * 20, [9]]
    engine.generate(prompts, params)
    compiled = engine.runner.backend.compiled
    assert compiled
    engine.generate(prompts, params)
    assert engine.runner.backend.compiled == compiled


def test_the_cache_is_as_the_device_reads_it(tmp_path):
    engine = Engine(EngineConfig(model_id=str(make_checkpoint(tmp_path, "llama")), device="example-vendor"))
    keys, values = next(iter(engine.runner.attention._caches.values()))
    assert keys.shape[2:] == torch.Size((16, 16))
    assert values.is_contiguous()
