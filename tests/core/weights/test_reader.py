import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tgi_core.errors import WeightsError
from tgi_core.weights.reader import open_weights
from tgi_core.weights.source import resolve_model


def test_every_tensor_is_as_the_library_reads_it(llama):
    reader = open_weights(resolve_model(str(llama)))
    expected = load_file(llama / "model.safetensors")
    assert reader.names == expected.keys()
    assert reader.total_bytes == sum(t.nbytes for t in expected.values())
    for name, tensor in expected.items():
        assert reader.shape(name) == tuple(tensor.shape)
        assert torch.equal(reader.get(name), tensor)


def test_shards_are_one_checkpoint(llama, sharded):
    whole, parts = open_weights(resolve_model(str(llama))), open_weights(resolve_model(str(sharded)))
    assert whole.names == parts.names
    assert all(torch.equal(whole.get(name), parts.get(name)) for name in whole.names)


def test_rows_and_dtype_can_be_chosen(llama):
    reader = open_weights(resolve_model(str(llama)))
    name = "model.layers.0.mlp.up_proj.weight"
    part = reader.get(name, dtype=torch.bfloat16, rows=slice(5, 9))
    assert torch.equal(part, reader.get(name)[5:9].bfloat16())


def test_copy_fills_a_tensor_of_another_dtype(llama):
    reader = open_weights(resolve_model(str(llama)))
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        out = torch.empty(reader.shape(name), dtype=torch.bfloat16)
        reader.copy(name, out)
        assert torch.equal(out, reader.get(name).bfloat16())


def test_copy_refuses_another_shape(llama):
    reader = open_weights(resolve_model(str(llama)))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight is stored as \[64\], but the model needs \[63\]"):
        reader.copy("model.norm.weight", torch.empty(63))


def test_a_missing_tensor_is_named(llama):
    reader = open_weights(resolve_model(str(llama)))
    for read in (reader.get, reader.shape):
        with pytest.raises(WeightsError, match="no tensor nonesuch"):
            read("nonesuch")


def test_a_model_resolved_without_weights_cannot_be_opened(llama):
    with pytest.raises(WeightsError, match="resolved without its weights"):
        open_weights(resolve_model(str(llama), download_weights=False))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn, torch.bfloat16])
def test_number_formats(tmp_path, llama, dtype):
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.arange(6).view(2, 3).to(dtype), "c": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    reader = open_weights(replace(resolve_model(str(llama)), weights=(tmp_path / "model.safetensors",)))
    assert all(torch.equal(reader.get(name), tensor) for name, tensor in tensors.items())
    assert reader.get("b").dtype == dtype


def test_a_view_stays_valid_after_its_pages_were_dropped(tmp_path, llama):
    tensors = {f"t{i}": torch.full((1024, 256), float(i)) for i in range(40)}
    save_file(tensors, tmp_path / "model.safetensors")
    reader = open_weights(replace(resolve_model(str(llama)), weights=(tmp_path / "model.safetensors",)))
    views = {name: reader.get(name) for name in tensors}
    assert all(torch.equal(view, tensors[name]) for name, view in views.items())


MEASURE = """
import sys, torch
from pathlib import Path
from tgi_core.weights.source import ModelFiles
from tgi_core.weights.reader import open_weights

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

reader = open_weights(ModelFiles("m", Path("."), (Path(sys.argv[1]),), None, {}, {}))
torch.zeros(10).sum()
before = peak()
held = {}
for name in sorted(reader.names):
    held[name] = torch.empty(reader.shape(name), dtype=torch.bfloat16)
    reader.copy(name, held[name])
weights = sum(tensor.nbytes for tensor in held.values())
print((peak() - before) / weights)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_stays_under_1_2_times_the_weights(tmp_path):
    tensors = {f"layer.{i}": torch.ones(1024, 4096, dtype=torch.bfloat16) for i in range(24)}
    tensors["embedding"] = torch.ones(8192, 4096, dtype=torch.bfloat16)  # a quarter of the whole
    save_file(tensors, tmp_path / "model.safetensors")
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path / "model.safetensors")]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.9 < ratio < 1.2
