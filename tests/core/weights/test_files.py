import json
import shutil

import pytest

from tgi_core.errors import ModelNotFound, WeightsError
from tgi_core.testing.tiny import make_checkpoint
from tgi_core.weights.files import choose_names
from tgi_core.weights.source import resolve_model

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1234\n"
SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def copy(sharded, tmp_path):
    """A sharded checkpoint that may be damaged."""
    return shutil.copytree(sharded, tmp_path / "copy")


def refused(folder):
    with pytest.raises(WeightsError) as error:
        resolve_model(str(folder))
    return str(error.value)


def test_all_shards_are_found(sharded):
    files = resolve_model(str(sharded))
    assert [file.name for file in files.weights] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert files.config["model_type"] == "llama"
    assert files.generation_config["eos_token_id"] == 2


def test_weights_can_be_left_out(copy):
    (copy / SHARD).unlink()
    assert resolve_model(str(copy), download_weights=False).weights == ()


def test_a_missing_shard_is_named(copy):
    (copy / SHARD).unlink()
    assert f"lacks {SHARD}; download the model again" in refused(copy)


def test_a_truncated_shard_is_named(copy):
    (copy / SHARD).write_bytes((copy / SHARD).read_bytes()[:-10])
    message = refused(copy)
    assert SHARD in message
    assert "is truncated" in message


def test_a_git_lfs_pointer_is_named(copy):
    (copy / SHARD).write_text(LFS)
    assert f"{copy / SHARD} is a git-lfs pointer" in refused(copy)
    assert "git lfs pull" in refused(copy)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_git_lfs_pointer_of_a_small_file_is_named(copy, name):
    (copy / name).write_text(LFS)
    assert f"{copy / name} is a git-lfs pointer" in refused(copy)


def test_an_empty_shard_is_named(copy):
    (copy / SHARD).write_bytes(b"")
    assert f"{copy / SHARD} is empty" in refused(copy)


def test_an_index_that_names_the_wrong_file_is_refused(copy):
    index = json.loads((copy / INDEX).read_text())
    name = next(n for n, file in index["weight_map"].items() if file == SHARD)
    index["weight_map"][name] = "model-00001-of-00003.safetensors"
    (copy / INDEX).write_text(json.dumps(index))
    assert f"says that {name} is in model-00001-of-00003.safetensors, but it is in {SHARD}" in refused(copy)


def test_an_index_that_names_a_tensor_that_no_file_has_is_refused(copy):
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["extra"] = SHARD
    (copy / INDEX).write_text(json.dumps(index))
    assert "no file has it" in refused(copy)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../../x"}}'])
def test_a_malformed_index_is_named(copy, text):
    (copy / INDEX).write_text(text)
    assert f"{copy / INDEX} is not a valid index" in refused(copy)


def test_malformed_json_is_named(copy):
    (copy / "config.json").write_text("{")
    assert f"{copy / 'config.json'} is not valid JSON" in refused(copy)


def test_two_files_with_the_same_tensor_are_refused(tmp_path):
    make_checkpoint(tmp_path, "llama")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-a.safetensors")
    shutil.copy(tmp_path / "model-a.safetensors", tmp_path / "model-b.safetensors")
    assert "is in model-a.safetensors and in model-b.safetensors" in refused(tmp_path)


def test_a_folder_without_weights_says_what_it_cannot_read(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tf_model.h5").write_text("x")
    assert "has no weights" in refused(tmp_path)
    assert "tf_model.h5 cannot be read" in refused(tmp_path)


def test_a_folder_that_is_no_model_is_not_found(tmp_path):
    with pytest.raises(ModelNotFound, match=r"has no config.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match="holds an adapter"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nothing", "what is this?", "x/y.gguf/z"])
def test_a_name_that_is_nothing_is_not_found(name):
    with pytest.raises(ModelNotFound, match="no such folder or file"):
        resolve_model(name)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.fp16.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "x.safetensors"], None),
        (["pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        (["consolidated.safetensors", "adapter_model.safetensors", "optimizer.bin"], []),
    ],
)
def test_the_right_files_are_chosen(names, chosen, tmp_path):
    assert list(choose_names(names, tmp_path)) == (names[:2] if chosen is None else chosen)
