"""GPTQ and AWQ checkpoints: tensors packed as their formats say, and the same text as from plain weights."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.errors import ConfigError, UnsupportedModel, WeightsError
from tgi_core.kernels.reference.affine import AffineLinear, expand
from tgi_core.quantization.awq import Awq, AwqReader
from tgi_core.quantization.gptq import Gptq, GptqReader
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.packed import awq, gptq, quantise, rounded
from tgi_core.testing.tiny import make_checkpoint
from tgi_core.weights.reader import WeightReader


class Tensors(WeightReader):
    """A checkpoint in memory."""

    def __init__(self, tensors):
        self.tensors, self.names, self.total_bytes = tensors, frozenset(tensors), 0

    def shape(self, name):
        return tuple(self.tensors[name].shape)

    def get(self, name, *, dtype=None, rows=None):
        tensor = self.tensors[name] if rows is None else self.tensors[name][rows]
        return tensor if dtype is None else tensor.to(dtype)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("any_order", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, -1), (8, 16), (2, 64)])
def test_gptq_weights_are_what_was_packed(bits, group, any_order, version):
    generator = torch.Generator().manual_seed(0)
    parts = rounded(torch.randn(48, 64, generator=generator), bits, group, generator, any_order=any_order)
    tensors = Tensors(gptq("a", parts, bits, version=version, ordered=not any_order) | {"a.bias": torch.ones(48)})
    reader = GptqReader(tensors, bits, group, zeros_less_one=version == 1)
    assert reader.names == {"a.weight", "a.bias"}
    assert reader.shape("a.weight") == (48, 64)
    assert torch.equal(reader.get("a.weight"), parts.plain())
    assert torch.equal(reader.get("a.weight", rows=slice(5, 23)), parts.plain()[5:23])
    block = torch.empty(10, 20, dtype=torch.bfloat16)
    reader.copy("a.weight", block, (7, 32))
    assert torch.equal(block, parts.plain()[7:17, 32:52].bfloat16())
    assert torch.equal(reader.get("a.bias", dtype=torch.float64), torch.ones(48).double())


@pytest.mark.parametrize("group", [32, -1])
def test_awq_weights_are_what_was_packed(group):
    generator = torch.Generator().manual_seed(0)
    parts = rounded(torch.randn(48, 64, generator=generator), 4, group, generator)
    reader = AwqReader(Tensors(awq("a", parts)), 4, group)
    assert reader.shape("a.weight") == (48, 64)
    assert torch.equal(reader.get("a.weight"), parts.plain())
    for rows in (slice(0, 8), slice(3, 5), slice(7, 30)):
        assert torch.equal(reader.get("a.weight", rows=rows), parts.plain()[rows])


def answers(path, **wishes):
    engine = Engine(EngineConfig(model_id=str(path), device="cpu", dtype="float32", **wishes))
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    return [(found.token_ids, found.logprobs) for found in engine.generate([[5, 9, 77, 3], [8] * 20], params)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "opt", "bloom", "falcon", "mixtral", "mpt", "phi"])
def test_families_say_the_same_as_from_plain_weights(family, tmp_path):
    packed, plain_folder = quantise(make_checkpoint(tmp_path / family, family), "gptq", any_order=True)
    assert answers(packed) == answers(plain_folder)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bloom", "falcon", "mixtral", "mpt"])
def test_families_say_the_same_where_levels_are_kept(family, tmp_path, monkeypatch):
    packed, plain_folder = quantise(make_checkpoint(tmp_path / family, family), "gptq", any_order=True)
    expected = answers(plain_folder, kernels={"linear": "reference"})
    codes = []
    monkeypatch.setattr(AffineLinear, "keeps_levels", True)
    pack = AffineLinear.pack
    monkeypatch.setattr(AffineLinear, "pack", lambda self, weight: codes.append(weight.dtype) or pack(self, weight))
    assert answers(packed, kernels={"linear": "reference"}) == expected
    assert set(codes) == {torch.int32}
    experts = 2 * sum(".w1.qweight" in name for name in load_file(packed / "model.safetensors"))
    assert len(codes) >= experts
    assert (experts > 0) is (family == "mixtral")


def test_memory_is_planned_for_levels_where_they_are_kept():
    quantization = Gptq({"quant_method": "gptq", "bits": 4, "group_size": 128})
    quantization.linear(SimpleNamespace(linear_affine=AffineLinear(), linear=None))
    assert quantization.layer_bits is None
    quantization.linear(SimpleNamespace(linear_affine=SimpleNamespace(keeps_levels=True), linear=None))
    assert 4 < quantization.layer_bits < 4.5


def test_codes_are_what_was_packed():
    generator = torch.Generator().manual_seed(0)
    for reader, packer in ((GptqReader, gptq), (AwqReader, awq)):
        parts = rounded(torch.randn(48, 64, generator=generator), 4, 32, generator)
        found = reader(Tensors(packer("a", parts, 4) if packer is gptq else packer("a", parts)), 4, 32)
        assert found.keeps_levels("a.weight")
        codes = torch.empty(10, 20, dtype=torch.int32)
        found.copy("a.weight", codes, (7, 32))
        assert torch.equal(expand(codes, torch.float32), parts.plain()[7:17, 32:52])
    tensors = Tensors(gptq("a", parts, 4) | {"a.scales": parts.scales.float(), "b.weight": torch.ones(2, 2)})
    kept = GptqReader(tensors, 4, 32)
    assert not kept.keeps_levels("a.weight")
    assert not kept.keeps_levels("b.weight")


def test_awq_says_the_same_as_from_plain_weights(tmp_path):
    packed, plain_folder = quantise(make_checkpoint(tmp_path / "llama"), "awq")
    assert answers(packed, quantize="awq") == answers(plain_folder)


def test_files_of_older_tools_are_found(tmp_path):
    packed, plain_folder = quantise(make_checkpoint(tmp_path / "llama"), "gptq")
    config = json.loads((packed / "config.json").read_text())
    quantization = config.pop("quantization_config")
    del quantization["quant_method"]
    (packed / "config.json").write_text(json.dumps(config))
    (packed / "quantize_config.json").write_text(json.dumps(quantization))
    assert answers(packed, quantize="gptq") == answers(plain_folder)


def test_plain_weights_are_not_gptq(tmp_path):
    with pytest.raises(ConfigError, match="gptq reads checkpoints that are stored so"):
        answers(make_checkpoint(tmp_path / "llama"), quantize="gptq")


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        (Gptq, {"bits": 3}, "of 3 bits cannot be read, of 2 and 4 and 8"),
        (Gptq, {"bits": None}, "None bits"),
        (Gptq, {"group_size": 0}, "group_size"),
        (Gptq, {"checkpoint_format": "marlin"}, "marlin"),
        (Gptq, {"is_marlin_format": True}, "marlin"),
        (Gptq, {"dynamic": {"lm_head": {"bits": 8}}}, "dynamic"),
        (Awq, {"bits": 8}, "of 8 bits"),
        (Awq, {"version": "GEMV"}, "gemv"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(kind, changes, reason):
    stored = {"quant_method": kind.__name__.lower(), "bits": 4, "group_size": 128, **changes}
    with pytest.raises(UnsupportedModel, match=reason):
        kind(stored)


@pytest.mark.parametrize("broken", ["scales", "g_idx", "qweight"])
def test_malformed_tensors_are_named(broken):
    generator = torch.Generator().manual_seed(0)
    parts = rounded(torch.randn(32, 64, generator=generator), 4, 32, generator)
    tensors = gptq("a", parts, 4, ordered=False)
    tensors[f"a.{broken}"] = {
        "scales": torch.ones(3, 32), "g_idx": torch.full((64,), 9), "qweight": torch.ones(8, 32)
    }[broken]  # fmt: skip
    with pytest.raises(WeightsError, match=r"^a"):
        GptqReader(Tensors(tensors), 4, 32).get("a.weight")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "falcon", "mixtral"])
def test_a_gpu_keeps_levels(family, method, tmp_path):
    from tgi_core.triton.rounded import Rounded

    folders = quantise(make_checkpoint(tmp_path / family, family), method, any_order=method == "gptq")
    params, found = SamplingParams(max_new_tokens=8, ignore_eos=True), []
    for folder in folders:
        engine = Engine(EngineConfig(model_id=str(folder), device="cuda", dtype="float16"))
        packed = [module.packed for module in engine.runner.model.modules() if hasattr(module, "packed")]
        assert any(isinstance(one, Rounded) for one in packed) is (folder is folders[0])
        found.append([output.logprobs[0] for output in engine.generate([[5, 9, 77, 3], [8] * 200], params)])
        engine.close()
    assert found[0] == pytest.approx(found[1], abs=0.02)
