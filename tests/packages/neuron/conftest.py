"""optimum-neuron on a pretended host: the vendor's runtime and compiler are stood in for, all above them is real.

`nox -s neuron` has an environment with optimum-neuron; where it is missing, nothing in this folder is collected.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

STANDIN = Path(__file__).parent / "standin"
collect_ignore = ["standin"]

if not importlib.util.find_spec("optimum") or not importlib.util.find_spec("optimum.neuron"):
    collect_ignore_glob = ["test_*"]
else:
    sys.path[:0] = [str(STANDIN), str(STANDIN.parent)]
    import neuron_host

    neuron_host.prepare()
    neuron_host.pretend()


@pytest.fixture(autouse=True)
def neuron(monkeypatch, tmp_path_factory):
    """The plugins of a host with one Inferentia2 device, and nothing compiled yet."""
    from optimum.neuron.cache import hub_cache

    from tgi_core import builtin
    from tgi_core.engine import place
    from tgi_core.plugins.manager import load_plugins
    from tgi_neuron import plugin
    from tgi_neuron.probe import probe

    root = neuron_host.write(tmp_path_factory.mktemp("host"))
    monkeypatch.setattr(plugin, "probe", lambda: probe(root))
    monkeypatch.setattr(place, "load_plugins", lambda builtins, blocked: load_plugins([*builtins, plugin], []))
    monkeypatch.setenv("TGI_NEURON_CACHE", str(tmp_path_factory.mktemp("compiled")))
    monkeypatch.setattr(hub_cache, "get_hub_cached_entries", lambda model, task: [])
    for name in ("HF_NUM_CORES", "HF_AUTO_CAST_TYPE", "TGI_NEURON_SAMPLING"):
        monkeypatch.delenv(name, raising=False)
    return load_plugins([builtin, plugin], [])


def pytest_collection_modifyitems(items):
    """optimum-neuron is made for an older PyTorch than this one."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning"))
