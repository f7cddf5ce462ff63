import logging
import subprocess
import sys
import types
from importlib import metadata
from importlib.metadata import EntryPoint

import pytest

from tgi_core import builtin
from tgi_core.deprecation import deprecated
from tgi_core.engine.explain import plugins_report
from tgi_core.errors import PluginFailed
from tgi_core.plugins import ENTRY_POINT_GROUP, hookimpl, hookspec, manager
from tgi_core.plugins.manager import installed_entry_points, load_plugins
from tgi_core.plugins.specs import DeviceProbe, KernelSpec


def load(*entry_points, blocked=()):
    return load_plugins([builtin], entry_points, blocked)


def states(plugins):
    return [(s.name, s.state) for s in plugins.statuses]


def test_a_broken_plugin_is_reported_and_the_others_load(fake):
    plugins = load(EntryPoint("broken", "no_such_module", ENTRY_POINT_GROUP), fake)
    assert states(plugins) == [("broken", "failed"), ("fake_vendor", "loaded")]
    assert "No module named 'no_such_module'" in plugins.failed[0].detail


def test_a_plugin_that_exits_on_import_is_reported(tmp_path, monkeypatch):
    (tmp_path / "quitter.py").write_text("raise SystemExit('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    status = load(EntryPoint("quitter", "quitter", ENTRY_POINT_GROUP)).statuses[0]
    assert (status.state, status.detail) == ("failed", "SystemExit: no licence")


def test_a_plugin_of_another_api_version_is_never_imported():
    status = load(EntryPoint("old", "would_crash_on_import", "tgi.v99")).statuses[0]
    assert status.state == "incompatible"
    assert f"speaks plugin API tgi.v99, this core speaks {ENTRY_POINT_GROUP}; install releases of it" in status.detail


def distribution(tmp_path, monkeypatch, groups, wanted=()):
    """The entry points of a distribution in these groups, all of one name."""
    module, info = tmp_path / "both.py", tmp_path / "both-1.0.dist-info"
    module.write_text("from tgi_core.plugins import hookimpl\n@hookimpl\ndef tgi_register_models(): return []")
    info.mkdir()
    requires = "".join(f"Requires-Dist: {line}\n" for line in wanted)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: both\nVersion: 1.0\n{requires}")
    (info / "entry_points.txt").write_text("".join(f"[{group}]\nboth = both\n" for group in groups))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "both", raising=False)
    (found,) = metadata.distributions(path=[str(tmp_path)])
    return found.entry_points


def test_a_plugin_for_several_api_versions_is_loaded_with_the_one_that_is_spoken(tmp_path, monkeypatch):
    plugins = load(*distribution(tmp_path, monkeypatch, ["tgi.v98", "tgi.v99", ENTRY_POINT_GROUP]))
    assert states(plugins) == [("both", "loaded")]


def test_a_plugin_for_several_api_versions_of_which_none_is_spoken_is_incompatible(tmp_path, monkeypatch):
    plugins = load(*distribution(tmp_path, monkeypatch, ["tgi.v98", "tgi.v99"]))
    assert set(states(plugins)) == {("both", "incompatible")}


@pytest.mark.parametrize("running", ["0.2.0", "0.1.9", ""])
def test_a_plugin_made_for_this_version_is_just_loaded(tmp_path, monkeypatch, running):
    monkeypatch.setattr(manager, "installed_version", lambda name: running)
    wanted = ["tgi_core>=0.1,<0.3", "tgi-core[testing]>=9; extra == 'testing'", "numpy<1", "not a requirement at all"]
    (status,) = load(*distribution(tmp_path, monkeypatch, [ENTRY_POINT_GROUP], wanted)).statuses
    assert (status.state, status.detail) == ("loaded", "")


@pytest.mark.parametrize("running", ["0.3.0", "0.0.9", "0.3.0.dev1", "1.0"])
def test_a_plugin_made_for_another_version_is_loaded_and_named(tmp_path, monkeypatch, running):
    monkeypatch.setattr(manager, "installed_version", lambda name: running)
    plugins = load(*distribution(tmp_path, monkeypatch, [ENTRY_POINT_GROUP], ["tgi-core<0.3,>=0.1"]))
    (status,) = plugins.statuses
    assert status.state == "loaded"
    assert status.detail == (
        f"made for tgi-core <0.3,>=0.1, and this is {running}: it may fail; "
        "install releases of it and of tgi-core that fit"
    )
    assert status.detail in plugins_report(plugins)


def test_a_plugin_that_fails_says_that_it_was_made_for_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr(manager, "installed_version", lambda name: "0.3.0")
    found = distribution(tmp_path, monkeypatch, [ENTRY_POINT_GROUP], ["tgi-core<0.3"])
    (tmp_path / "both.py").write_text("from tgi_core.plugins import gone")
    (status,) = load(*found).statuses
    assert status.state == "failed"
    assert "cannot import name 'gone'" in status.detail
    assert "made for tgi-core <0.3, and this is 0.3.0" in status.detail


def test_a_hook_that_goes_away_works_and_says_what_to_use(make_plugin):
    @hookspec
    @deprecated(since="1.2", use="tgi_register_kernels")
    def tgi_old_kernels(settings): ...

    specs = types.ModuleType("specs")
    specs.tgi_old_kernels = tgi_old_kernels
    plugin = make_plugin("aged", tgi_old_kernels=lambda settings: [settings])
    said = "tgi_old_kernels is deprecated since tgi-core 1.2; use tgi_register_kernels"
    with pytest.warns(DeprecationWarning, match=f"plugin aged: .*{said}"):
        plugins = load_plugins([builtin], [plugin], more_hookspecs=[specs])
    assert list(plugins.collect("tgi_old_kernels", settings=7)) == [("aged", [7])]
    assert plugins.statuses[0].state == "loaded"
    assert said in plugins_report(plugins)


def test_a_module_without_hooks_is_no_plugin(monkeypatch):
    module = types.ModuleType("forgot")
    module.tgi_register_kernels = lambda: []
    monkeypatch.setitem(sys.modules, "forgot", module)
    status = load(EntryPoint("forgot", "forgot", ENTRY_POINT_GROUP)).statuses[0]
    assert status.state == "failed"
    assert "it has no hook; mark its functions with tgi_core.plugins.hookimpl" in status.detail


def raising():
    raise OSError("libchip.so: cannot open shared object file")


def lazily_raising():
    yield KernelSpec(op="gelu", name="mine", target="x:y")
    raising()


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (raising, "OSError: libchip.so: cannot open"),
        (lazily_raising, "OSError: libchip.so: cannot open"),
        (lambda: None, "'NoneType' object is not iterable"),
        (lambda: [DeviceProbe(kind="x", backend="x:y")], "returned a DeviceProbe where a KernelSpec was expected"),
    ],
)
def test_a_plugin_that_fails_to_register_is_named_with_what_to_do(make_plugin, fake, hook, message):
    plugins = load(make_plugin("broken", tgi_register_kernels=hook), fake)
    with pytest.raises(PluginFailed, match="plugin broken failed in tgi_register_kernels") as failed:
        list(plugins.registered("tgi_register_kernels", KernelSpec))
    assert message in str(failed.value)
    assert "start without it: --disable-plugin broken" in str(failed.value)
    assert plugins.complaint("broken") == str(failed.value)
    assert plugins.complaint("fake_vendor") == ""


def test_collecting_hands_each_hook_what_it_asks_for(make_plugin):
    specs = types.ModuleType("specs")
    specs.tgi_register_routes = hookspec(lambda settings, more: None)
    plugin = make_plugin("routes", tgi_register_routes=lambda settings: [settings])
    plugins = load_plugins([builtin], [plugin], more_hookspecs=[specs])
    assert list(plugins.collect("tgi_register_routes", settings=7, more=8)) == [("routes", [7])]


def test_an_entry_point_of_another_project_is_not_ours():
    assert load(EntryPoint("x", "would_crash_on_import", "tgi.version")).statuses == []


def test_a_blocked_plugin_is_not_imported(fake):
    blocked = EntryPoint("blocked", "would_crash_on_import", ENTRY_POINT_GROUP)
    assert states(load(fake, blocked, blocked=["blocked"])) == [("blocked", "blocked"), ("fake_vendor", "loaded")]


def test_a_misspelt_hook_fails_its_plugin_only(make_plugin, fake):
    plugins = load(make_plugin("typo", tgi_register_kernel=lambda: ()), fake)
    assert states(plugins) == [("fake_vendor", "loaded"), ("typo", "failed")]
    assert "unknown hook 'tgi_register_kernel'" in plugins.failed[0].detail
    assert "is it misspelt? A hook of the server is marked with hookimpl(optionalhook=True)" in plugins.failed[0].detail
    assert not plugins.manager.has_plugin("typo")


def test_a_hook_with_a_misspelt_argument_fails_its_plugin_only(make_plugin, fake):
    plugins = load(make_plugin("typo", tgi_resolve_model=lambda modelid: None), fake)
    assert states(plugins) == [("fake_vendor", "loaded"), ("typo", "failed")]


def test_a_server_hook_is_optional_in_a_core_only_process(monkeypatch):
    module = types.ModuleType("serverish")
    module.tgi_register_routes = hookimpl(lambda: (), specname="tgi_register_routes", optionalhook=True)
    monkeypatch.setitem(sys.modules, "serverish", module)
    assert load(EntryPoint("serverish", "serverish", ENTRY_POINT_GROUP)).statuses[0].state == "loaded"


def test_more_hookspecs_add_hooks(make_plugin):
    specs = types.ModuleType("specs")
    specs.tgi_register_commands = hookspec(lambda: None)
    plugin = make_plugin("with_commands", tgi_register_commands=lambda: ["c"])
    plugins = load_plugins([builtin], [plugin], more_hookspecs=[specs])
    assert list(plugins.collect("tgi_register_commands")) == [("with_commands", ["c"])]


def test_two_plugins_of_one_name_are_reported(fake):
    again = EntryPoint(fake.name, "other_module", ENTRY_POINT_GROUP)
    plugins = load(fake, again)
    assert sorted(s.state for s in plugins.statuses) == ["failed", "loaded"]
    assert "another plugin is already called fake_vendor" in plugins.failed[0].detail


def test_decision_hooks_are_asked_by_plugin_name_whatever_the_disk_says(make_plugin):
    asked = []
    b = make_plugin("b", tgi_resolve_model=lambda model_id: asked.append("b"))
    a = make_plugin("a", tgi_resolve_model=lambda model_id: asked.append("a"))
    for order in ((a, b), (b, a)):
        asked.clear()
        answer = load(*order).hook.tgi_resolve_model(model_id="m", revision=None, cache_dir=None)
        assert answer is None
        assert asked == ["a", "b"]


def test_collect_names_the_plugin_of_each_result(fake):
    offers = dict(load(fake).collect("tgi_probe_device"))
    assert offers["fake_vendor"].products == ("Fake 1",)
    assert offers["tgi_core.builtin"].kind == "cpu"
    assert load(fake).implements("tgi_probe_device") == ["fake_vendor", "tgi_core.builtin"]


def test_installed_entry_points_are_those_of_each_distribution_once():
    found = [(e.group, e.name) for e in installed_entry_points() if e.group == ENTRY_POINT_GROUP]
    assert len(found) == len(set(found))


def test_a_failed_plugin_prints_nothing_by_itself(caplog):
    with caplog.at_level(logging.INFO):
        load(EntryPoint("broken", "no_such_module", ENTRY_POINT_GROUP))
    assert caplog.records == []


def test_listing_plugins_and_probing_imports_no_torch():
    code = (
        "import sys\nfrom tgi_core import builtin\nfrom tgi_core.plugins.manager import load_plugins\n"
        "p = load_plugins([builtin])\nlist(p.collect('tgi_probe_device'))\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
