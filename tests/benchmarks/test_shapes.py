"""Checkpoints of random weights that benchmarks write."""

import pytest

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.sampling_params import SamplingParams

TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 700,
    "max_position_embeddings": 256,
}  # fmt: skip
CHANGES = {
    "8b": {**TINY, "num_key_value_heads": 2},
    "1b": {**TINY, "num_key_value_heads": 2},
    "135m": {**TINY, "num_key_value_heads": 2},
    "mixtral": {**TINY, "num_key_value_heads": 2, "num_local_experts": 4},
    "neox": TINY,
    "t5": {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
           "vocab_size": 700},
}  # fmt: skip


@pytest.fixture
def shapes(scripts):
    import shapes

    return shapes


@pytest.mark.parametrize("name", CHANGES)
def test_every_shape_can_be_served(name, tmp_path, shapes):
    assert CHANGES.keys() == shapes.SHAPES.keys()
    shape = shapes.Shape(name, **CHANGES[name])
    engine = Engine(EngineConfig(model_id=str(shape.write(tmp_path, "cpu")), device="cpu"))
    assert not engine.info.fallback
    (found,) = engine.generate([[5, 6, 7]], SamplingParams(max_new_tokens=4, ignore_eos=True))
    assert len(found.token_ids) == 4


def test_a_decode_reads_what_an_encoder_and_other_experts_do_not(shapes):
    llama, mixtral, t5 = (shapes.Shape(name) for name in ("8b", "mixtral", "t5"))
    layer = 4096 * (6144 + 4096 + 3 * 14336)
    assert llama.read_elements() == pytest.approx(32 * layer + 49152 * 4096, rel=1e-3)
    assert llama.token_elements == pytest.approx(32 * layer, rel=1e-3)
    expert = 3 * 4096 * 14336
    always = mixtral.elements("decode", "head")
    assert mixtral.read_elements(1) - always == mixtral.token_elements - mixtral.elements("decode") == 8 * 2 * expert
    assert mixtral.read_elements(64) - always == pytest.approx(8 * 8 * expert, rel=1e-3)
    cross = 24 * 2 * 2048 * 2048
    assert t5.elements("decode") == pytest.approx(24 * (6 * 2048 * 2048 + 3 * 2048 * 5120), rel=1e-3)
    assert t5.read_elements() == t5.elements("decode") + 32128 * 2048
    assert t5.elements("source") == pytest.approx(24 * (4 * 2048 * 2048 + 3 * 2048 * 5120) + cross, rel=1e-3)
