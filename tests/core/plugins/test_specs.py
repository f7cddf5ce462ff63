import dataclasses

import pytest

from tgi_core.errors import ConfigError, PluginFailed
from tgi_core.plugins.specs import DeviceProbe, KernelSpec, resolve


def test_a_target_is_resolved_on_use():
    assert resolve("json:loads")("[1]") == [1]


def test_a_wrong_target_names_what_is_missing():
    with pytest.raises(PluginFailed, match=r"json:nonesuch cannot be imported: .*--disable-plugin NAME"):
        resolve("json:nonesuch")


def test_a_target_whose_module_needs_what_is_missing_says_so(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import no_such_driver")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginFailed, match=r"needy:kernel cannot be imported: .*'no_such_driver'; install"):
        resolve("needy:kernel")


def test_a_module_may_say_itself_why_it_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "explains.py").write_text("from tgi_core.errors import ConfigError\nraise ConfigError('set X=1')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^set X=1$"):
        resolve("explains:kernel")


def test_records_are_frozen_and_keyword_only():
    spec = KernelSpec(op="gelu", name="mine", target="x:y")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.priority = 5
    with pytest.raises(TypeError):
        KernelSpec("gelu", "mine", "x:y")


def test_a_probe_is_available_when_it_names_a_product():
    assert DeviceProbe(kind="cuda", backend="x:y", products=("H100",)).available
    assert not DeviceProbe(kind="cuda", backend="x:y", reason="no driver").available
