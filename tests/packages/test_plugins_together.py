"""Many installed plugins at once, some of them broken: what `tgi` says of each, and what goes on working."""

import os
import subprocess
import sys

import pytest

HOOKIMPL = "from tgi_core.plugins import hookimpl\nfrom tgi_core.plugins.specs import *\n"
PROBE = "@hookimpl\ndef tgi_probe_device(): "
FOUND = "return DeviceProbe(kind='{name}', backend='tgi_core.cpu.backend:CpuBackend', products=('One',))\n"
MISSING = "return DeviceProbe(kind='absent', backend='', reason='no card in a slot')\n"
GOOD = HOOKIMPL + PROBE + FOUND
PLUGINS = {  # name -> (group, module)
    "good": ("tgi.v1", GOOD.format(name="good")),
    "no-import": ("tgi.v1", "import driver_that_is_not_there\n"),
    "misspelt": ("tgi.v1", HOOKIMPL + "@hookimpl\ndef tgi_register_kernel(): return []\n"),
    "raising": ("tgi.v1", HOOKIMPL + PROBE + "raise OSError('no permission for /dev/chip')\n"),
    "later": ("tgi.v9", "import would_crash_on_import\n"),
    "absent": (
        "tgi.v1",
        HOOKIMPL + PROBE + MISSING,
    ),
    "lazy": ("tgi.v1", HOOKIMPL + "@hookimpl\ndef tgi_register_models(): return None\n"),
    "unmarked": ("tgi.v1", "def tgi_register_models(): return []\n"),
    "commands": (
        "tgi.v1",
        HOOKIMPL + "@hookimpl(optionalhook=True)\ndef tgi_register_commands(): raise RuntimeError('no click')\n",
    ),
}
SAID = {  # name -> what a person reads of it
    "good": "loaded",
    "no-import": "No module named 'driver_that_is_not_there'",
    "misspelt": "is it misspelt? A hook of the server is marked with hookimpl(optionalhook=True)",
    "raising": "its probe raised OSError: no permission for /dev/chip; install a release that works",
    "later": "speaks plugin API tgi.v9, this core speaks tgi.v1; install releases of it and of tgi-core that speak",
    "absent": "no card in a slot",
    "lazy": "plugin lazy failed in tgi_register_models: TypeError: 'NoneType' object is not iterable",
    "unmarked": "it has no hook; mark its functions with tgi_core.plugins.hookimpl",
    "commands": "loaded",
}


@pytest.fixture
def tgi(tmp_path):
    """Calls `tgi` where only these plugins are installed: (exit status, what it printed, what it printed as error)."""

    def call(plugins, *arguments):
        for name, (group, source) in plugins.items():
            module = f"plugin_{name.replace('-', '_')}"
            (tmp_path / f"{module}.py").write_text(source)
            info = tmp_path / f"{module}-1.0.dist-info"
            info.mkdir(exist_ok=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tgi-{name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        only = (
            "import sys; from importlib import metadata; found = metadata.distributions;"
            f"metadata.distributions = lambda: found(path=[{str(tmp_path)!r}]);"
            "from tgi_server.cli import main; main()"
        )
        path = os.pathsep.join([str(tmp_path), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", only, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return call


def test_every_plugin_is_listed_with_what_is_wrong(tgi):
    status, said, _ = tgi(PLUGINS, "plugins")
    assert status == 0
    for name, expected in SAID.items():
        about = [line for line in said.splitlines() if line.startswith(name)]
        assert any(expected in line for line in about), f"{name}: {about}"
    assert "`tgi serve` would use good: the only accelerator that can be used" in said


def test_a_plugin_whose_commands_fail_leaves_ours(tgi):
    status, said, warned = tgi(PLUGINS, "--help")
    assert status == 0
    assert "Serve a model over HTTP." in said
    assert "plugin commands failed in tgi_register_commands: RuntimeError: no click" in warned


def test_a_plugin_that_fails_to_register_models_stops_with_its_name(tgi):
    status, _, said = tgi(PLUGINS, "models")
    assert status == 1
    assert said.splitlines()[-1].startswith("error: plugin lazy failed in tgi_register_models")
    assert "Traceback" not in said


def test_two_vendors_of_one_device_are_told_apart(tgi):
    both = {"other": ("tgi.v1", GOOD.format(name="good")), "good": PLUGINS["good"]}
    status, said, _ = tgi(both, "plugins")
    assert status == 0
    assert "device 'good' is offered by good and other; uninstall one, or pass --disable-plugin good or" in said
    status, _, said = tgi(both, "kernels", "--model", "anywhere")
    assert status == 1
    assert "Traceback" not in said


def test_two_devices_that_can_be_used_need_a_choice(tgi):
    plugins = {name: ("tgi.v1", GOOD.format(name=name)) for name in ("one", "two")}
    _, said, _ = tgi(plugins, "plugins")
    assert "`tgi serve` would stop: several devices can be used; choose with --device" in said


def test_a_device_that_cannot_be_used_is_no_reason_to_take_the_cpu(tgi):
    _, said, _ = tgi({"absent": PLUGINS["absent"]}, "plugins")
    assert "`tgi serve` would stop: an accelerator plugin is installed but its device cannot be used" in said
