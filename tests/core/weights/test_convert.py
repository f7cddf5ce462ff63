import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tgi_core.errors import WeightsError
from tgi_core.weights import convert
from tgi_core.weights.reader import open_weights
from tgi_core.weights.source import resolve_model


@pytest.fixture
def bin_checkpoint(llama, tmp_path):
    """The tiny llama as two .bin files, with tensors that share memory."""
    folder = shutil.copytree(llama, tmp_path / "bin")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in half} | {"shared": state[half[0]], "step": 5}, folder / file)
        weight_map |= dict.fromkeys(half, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def same_as(llama, reader):
    expected = load_file(llama / "model.safetensors")
    return all(torch.equal(reader.get(name), tensor) for name, tensor in expected.items())


def test_a_bin_checkpoint_is_converted_beside_itself_once(llama, bin_checkpoint, monkeypatch):
    files = resolve_model(str(bin_checkpoint))
    assert [file.suffix for file in files.weights] == [".bin", ".bin"]
    assert same_as(llama, open_weights(files))
    monkeypatch.setattr(convert, "_convert_in_subprocess", None)  # the second time nothing is converted
    again = resolve_model(str(bin_checkpoint))
    assert [file.suffix for file in again.weights] == [".safetensors", ".safetensors"]
    assert same_as(llama, open_weights(again))
    assert not list(bin_checkpoint.glob(".converting*"))


def test_a_folder_that_cannot_be_written_is_converted_into_the_cache(llama, bin_checkpoint, cache, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(convert.tempfile, "TemporaryDirectory", refuse)
    before = sorted(bin_checkpoint.iterdir())
    assert same_as(llama, open_weights(resolve_model(str(bin_checkpoint))))
    assert sorted(bin_checkpoint.iterdir()) == before
    assert list((cache / "tgi" / "converted").iterdir())


def test_a_single_bin_file_needs_no_index(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "bin")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same_as(llama, open_weights(resolve_model(str(folder))))
    assert (folder / "model.safetensors").exists()


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_code_in_a_bin_file_is_never_run(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(llama, tmp_path / "bin")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model.bin: .*use safetensors"):
        open_weights(resolve_model(str(folder)))
    assert not (tmp_path / "owned").exists()


def test_a_truncated_bin_file_is_named(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "bin")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:20000])
    with pytest.raises(WeightsError, match=r"cannot be converted to safetensors: pytorch_model.bin: "):
        open_weights(resolve_model(str(folder)))
