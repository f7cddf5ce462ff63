"""What plugins add to the application."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace

import httpx
import pytest
from fastapi.routing import APIRoute

from tgi_core.errors import PluginFailed
from tgi_core.plugins import ENTRY_POINT_GROUP, hookimpl
from tgi_core.plugins.manager import load_plugins
from tgi_server import hookspecs
from tgi_server.serving import build_app
from tgi_server.settings import Settings


async def extra():
    return "extra"


def broken(settings):
    raise RuntimeError(f"no room at {settings.port}")


@pytest.fixture
def load(monkeypatch):
    def load(**functions):
        module = ModuleType("a_plugin")
        for name, function in functions.items():
            setattr(module, name, hookimpl(function, specname=name, optionalhook=True))
        monkeypatch.setitem(sys.modules, "a_plugin", module)
        entry_point = EntryPoint("a_plugin", "a_plugin", ENTRY_POINT_GROUP)
        return load_plugins((), [entry_point], more_hookspecs=[hookspecs])

    return load


async def test_routes_of_a_plugin_are_served(load):
    plugins = load(tgi_register_routes=lambda settings: [APIRoute(f"/extra/{settings.port}", extra)])
    app = build_app(Settings(port=1234), SimpleNamespace(), plugins)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        assert (await client.get("/extra/1234")).json() == "extra"


@pytest.mark.parametrize("hook", ["tgi_register_routes", "tgi_register_middleware"])
def test_a_plugin_that_fails_is_named_with_what_to_do(load, hook):
    message = rf"plugin a_plugin failed in {hook}: RuntimeError: no room at 1234; .*--disable-plugin a_plugin"
    with pytest.raises(PluginFailed, match=message):
        build_app(Settings(port=1234), SimpleNamespace(), load(**{hook: broken}))
