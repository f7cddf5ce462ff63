import importlib.util
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from tgi_core.errors import ModelNotFound, WeightsError
from tgi_core.weights.reader import open_weights
from tgi_core.weights.source import resolve_model

_SPEC = importlib.util.spec_from_file_location("fake_hub", Path(__file__).with_name("fake_hub.py"))
fake_hub = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fake_hub)
COMMIT = fake_hub.COMMIT


@pytest.fixture
def hub(monkeypatch):
    """A hub on loopback that everything asks."""
    server = fake_hub.FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield server
    server.close()


@pytest.fixture
def find(tmp_path):
    """resolve_model with a cache of the test's own."""
    return lambda model_id, **options: resolve_model(model_id, cache_dir=tmp_path / "hub", **options)


def fetched(hub):
    return {path.rpartition("/")[2] for method, path, *_ in hub.requests if method == "GET" and "/resolve/" in path}


def test_a_model_is_downloaded_with_its_shards(hub, find, sharded):
    hub.folders["me/tiny"] = sharded
    files = find("me/tiny")
    assert (files.model_id, files.sha) == ("me/tiny", COMMIT)
    assert len(files.weights) == 3
    assert (files.folder / "tokenizer.json").exists()
    assert len(open_weights(files).names) == 21


def test_only_what_is_needed_is_downloaded(hub, find, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "repository")
    for name in ("pytorch_model.bin", "training_args.bin", "README.md", "model.gguf", "onnx/model.onnx", "onnx/c.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    hub.folders["me/tiny"] = folder
    find("me/tiny")
    expected = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert fetched(hub) == expected


def test_a_compiled_model_is_downloaded_whole(hub, find, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "repository", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("compiled.json", "graphs.pt", "checkpoint/weights/part.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    hub.folders["me/compiled"] = folder
    files = find("me/compiled", artifact="compiled.json")
    assert files.weights == ()
    assert (files.folder / "checkpoint/weights/part.bin").exists()
    with pytest.raises(WeightsError, match="has no weights in a format that can be read"):
        find("me/compiled")


def test_weights_can_be_left_out(hub, find, llama):
    hub.folders["me/tiny"] = llama
    files = find("me/tiny", download_weights=False)
    assert files.weights == ()
    assert "model.safetensors" not in fetched(hub)


def test_a_second_time_nothing_is_downloaded(hub, find, llama):
    hub.folders["me/tiny"] = llama
    find("me/tiny")
    hub.requests.clear()
    find("me/tiny")
    assert fetched(hub) == set()


def test_progress_is_told(hub, find, sharded):
    hub.folders["me/tiny"] = sharded
    told = []
    find("me/tiny", progress=lambda fraction, name: told.append((fraction, name)))
    fractions = [fraction for fraction, _ in told]
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert fractions == sorted(fractions)
    assert told[1][1] == "model-00002-of-00003.safetensors"


def test_a_gguf_file_of_a_repository_can_be_named(hub, find, llama, write_gguf, tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    shutil.copy(write_gguf(llama), tmp_path / "repository" / "a.Q4.gguf")
    shutil.copy(write_gguf(llama), tmp_path / "repository" / "b.Q8.gguf")
    hub.folders["me/tiny-gguf"] = tmp_path / "repository"
    files = find("me/tiny-gguf/b.Q8.gguf")
    assert files.config["model_type"] == "llama"
    assert fetched(hub) == {"b.Q8.gguf"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find("me/tiny-gguf/b.Q8.gguf").sha == COMMIT
    with pytest.raises(ModelNotFound, match="is not in the cache"):
        find("me/tiny-gguf/a.Q4.gguf")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelNotFound, match=r"holds several models, name one: me/tiny-gguf/a\.Q4\.gguf"):
        find("me/tiny-gguf")
    with pytest.raises(ModelNotFound, match=r"has no file c\.gguf; it has a\.Q4\.gguf, b\.Q8\.gguf"):
        find("me/tiny-gguf/c.gguf")


def test_a_repository_with_one_gguf_file_is_a_model(hub, find, llama, write_gguf, tmp_path):
    (tmp_path / "repository").mkdir()
    shutil.copy(write_gguf(llama), tmp_path / "repository")
    hub.folders["me/tiny-gguf"] = tmp_path / "repository"
    assert find("me/tiny-gguf", download_weights=False).config["model_type"] == "llama"


def test_the_cache_answers_when_the_hub_is_gone(hub, find, llama, monkeypatch, caplog):
    hub.folders["me/tiny"] = llama
    find("me/tiny")
    hub.status["me/tiny"] = (503, "")
    assert len(find("me/tiny").weights) == 1
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert len(find("me/tiny").weights) == 1
    assert "looking for me/tiny in the cache" in caplog.text


def test_offline_mode_asks_nobody(hub, find, llama, monkeypatch):
    hub.folders["me/tiny"] = llama
    find("me/tiny")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find("me/tiny").sha == COMMIT
    assert hub.requests == []
    with pytest.raises(ModelNotFound, match="me/other is not in the cache and HF_HUB_OFFLINE is set; download it once"):
        find("me/other")


def test_offline_with_half_a_model_says_what_is_missing(hub, find, llama, monkeypatch):
    hub.folders["me/tiny"] = llama
    find("me/tiny", download_weights=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="has no weights"):
        find("me/tiny")


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", "neither a local folder nor a public model of the hub; check the name, or set HF_TOKEN"),
        (401, "RepoNotFound", "set HF_TOKEN if it is private"),
        (401, "", "set HF_TOKEN if it is private"),
        (403, "GatedRepo", "is gated: accept its terms on the hub, then set HF_TOKEN"),
    ],
)
def test_a_refusal_says_what_to_do(hub, find, status, code, reason):
    hub.status["me/tiny"] = (status, code)
    with pytest.raises(ModelNotFound, match=reason):
        find("me/tiny")


def test_an_unknown_revision_is_named(hub, find, llama):
    hub.folders["me/tiny"] = llama
    with pytest.raises(ModelNotFound, match="has no revision 'v9' on the hub; check --revision"):
        find("me/tiny", revision="v9")


def test_the_token_is_sent(hub, find, llama, monkeypatch):
    hub.folders["me/tiny"] = llama
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    find("me/tiny", download_weights=False)
    assert {authorization for *_, authorization in hub.requests} == {"Bearer hf_secret"}


def test_an_interrupted_download_goes_on_where_it_stopped(hub, find, llama, monkeypatch):
    hub.folders["me/tiny"] = llama
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cut_after["model.safetensors"] = 100_000
    try:
        find("me/tiny")
    except ModelNotFound as error:
        reason = str(error)
        assert "it goes on where it was" in reason
    assert len(open_weights(find("me/tiny")).names) == 21
    ranges = [range_ for method, path, range_, _ in hub.requests if path.endswith(".safetensors") and method == "GET"]
    assert "bytes=100000-" in ranges


def test_a_repository_without_weights_is_refused(hub, find, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "repository")
    (folder / "model.safetensors").rename(folder / "model.onnx")
    hub.folders["me/tiny"] = folder
    with pytest.raises(WeightsError, match="has no weights in a format that can be read"):
        find("me/tiny")
