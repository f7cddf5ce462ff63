import subprocess
import sys

import pytest

from tgi_core.errors import WeightsError
from tgi_core.weights import source
from tgi_core.weights.source import resolve_model


def test_the_embedded_default_is_the_gguf_file_of_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / source.DEFAULT_PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('its dependencies are not installed')")
    (package / "model.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, source.DEFAULT_PACKAGE, raising=False)
    assert source.default_model_id() == str(package / "model.gguf")


def test_without_the_package_the_default_is_a_hub_id(monkeypatch):
    monkeypatch.setattr(source, "DEFAULT_PACKAGE", "no_such_package")
    assert source.default_model_id() == source.DEFAULT_HUB_ID


def test_an_empty_model_id_is_the_default(monkeypatch, llama):
    monkeypatch.setattr(source, "default_model_id", lambda: str(llama))
    assert source.resolve_model("").folder == llama


def test_finding_a_model_imports_no_torch(llama, write_gguf):
    code = (
        "import sys\nfrom tgi_core.weights.source import resolve_model\n"
        f"resolve_model({str(llama)!r}); resolve_model({str(write_gguf(llama))!r})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_compiled_model_needs_no_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="has no weights"):
        resolve_model(str(tmp_path), artifact="compiled.json")
    (tmp_path / "compiled.json").touch()
    assert resolve_model(str(tmp_path), artifact="compiled.json").weights == ()
