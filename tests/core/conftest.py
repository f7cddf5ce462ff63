"""Plugins made on the spot."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from tgi_core import builtin
from tgi_core.plugins import ENTRY_POINT_GROUP, hookimpl
from tgi_core.plugins.manager import load_plugins


@pytest.fixture
def load(monkeypatch):
    """load(name={hook: result}, ...): the built-ins and plugins with these hooks; a callable result is called."""

    def load(**plugins):
        entry_points = []
        for name, hooks in plugins.items():
            module = ModuleType(f"plugin_{name}")
            for hook, result in hooks.items():
                setattr(module, hook, hookimpl(_answer(result), specname=hook))
            monkeypatch.setitem(sys.modules, module.__name__, module)
            entry_points.append(EntryPoint(name, module.__name__, ENTRY_POINT_GROUP))
        loaded = load_plugins([builtin], entry_points)
        assert not loaded.failed
        return loaded

    return load


def _answer(result):
    return lambda: result() if callable(result) else result
