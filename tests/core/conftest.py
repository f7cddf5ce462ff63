"""Plugins that tests make."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from tgi_core import builtin
from tgi_core.plugins import ENTRY_POINT_GROUP, hookimpl
from tgi_core.plugins.manager import load_plugins


@pytest.fixture
def make_plugin(monkeypatch):
    """Makes a plugin module from hook name -> function, and returns its entry point."""

    def make(name, **hooks):
        module = ModuleType(name)
        for hook, function in hooks.items():
            setattr(module, hook, hookimpl(function, specname=hook))
        monkeypatch.setitem(sys.modules, name, module)
        return EntryPoint(name, name, ENTRY_POINT_GROUP)

    return make


@pytest.fixture
def load(make_plugin):
    """load(name={hook: result}, ...): the built-ins and plugins with these hooks; a callable result is called."""

    def load(**plugins):
        entry_points = [
            make_plugin(name, **{hook: _answer(result) for hook, result in hooks.items()})
            for name, hooks in plugins.items()
        ]
        loaded = load_plugins([builtin], entry_points)
        assert not loaded.failed
        return loaded

    return load


def _answer(result):
    return lambda: result() if callable(result) else result
