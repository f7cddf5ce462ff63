import logging
import subprocess
import sys
import types
from importlib.metadata import EntryPoint

from tgi_core import builtin
from tgi_core.plugins import ENTRY_POINT_GROUP, hookimpl, hookspec
from tgi_core.plugins.manager import installed_entry_points, load_plugins


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
    assert "tgi.v99" in status.detail


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
