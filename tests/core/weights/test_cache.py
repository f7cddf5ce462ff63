import os

import pytest
from huggingface_hub import constants

from tgi_core.weights.cache import derived_folder


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "source"
    path.write_text("1")
    return path


def fill(folder):
    (folder / "a").write_text("made")


def fail(folder):
    raise AssertionError


def test_a_folder_is_made_once(checkpoint, cache):
    folder = derived_folder("kind", [checkpoint], fill)
    assert (folder / "a").read_text() == "made"
    assert folder.is_relative_to(cache)
    assert derived_folder("kind", [checkpoint], fail) == folder


def test_a_changed_source_has_a_folder_of_its_own(checkpoint):
    folder = derived_folder("kind", [checkpoint], fill)
    os.utime(checkpoint, (1, 1))
    assert derived_folder("kind", [checkpoint], fill) != folder


def test_a_failure_leaves_nothing_behind(checkpoint, cache):
    with pytest.raises(AssertionError):
        derived_folder("kind", [checkpoint], fail)
    assert list((cache / "tgi" / "kind").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(checkpoint, monkeypatch, cache):
    (cache / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HOME", str(cache / "file"))
    folder = derived_folder("kind", [checkpoint], fill)
    assert (folder / "a").read_text() == "made"
    assert not folder.is_relative_to(cache)
