"""Finds plugins, loads each behind a guard, and remembers what became of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

import pluggy

from tgi_core.plugins import ENTRY_POINT_GROUP, PROJECT, hookspecs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginStatus:
    """One line of `tgi plugins`."""

    name: str
    distribution: str  #: "tgi-cuda 1.4.0"
    state: str  #: loaded | blocked | incompatible | failed
    detail: str = ""  #: for a person, why it is not loaded


class Plugins:
    """The loaded plugins of one process.  Built once by `load_plugins`, then passed along."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.statuses: list[PluginStatus] = []

    @property
    def hook(self) -> pluggy.HookRelay:
        """Call a hook of every plugin: `plugins.hook.tgi_on_engine_started(info=info)`."""
        return self.manager.hook

    @property
    def failed(self) -> list[PluginStatus]:
        """The plugins that wanted to load and could not."""
        return [s for s in self.statuses if s.state in ("failed", "incompatible")]

    def implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """Every plugin's function for a hook, by name of the plugin, so that load order never matters."""
        return sorted(getattr(self.manager.hook, hook).get_hookimpls(), key=lambda impl: impl.plugin_name)

    def collect(self, hook: str) -> Iterator[tuple[str, Any]]:
        """Yield (plugin name, result) of a hook without arguments."""
        for impl in self.implementations(hook):
            yield impl.plugin_name, impl.function()

    def implements(self, hook: str) -> list[str]:
        """Names of the plugins that implement a hook."""
        return [impl.plugin_name for impl in self.implementations(hook)]


def load_plugins(
    builtins: Iterable[object] = (),
    entry_points: Iterable[metadata.EntryPoint] | None = None,
    blocked: Iterable[str] = (),
    more_hookspecs: Iterable[ModuleType] = (),
) -> Plugins:
    """Load the built-in plugins, then every installed one.  A plugin that fails is reported, not raised.

    Args:
        builtins: plugin modules that are always there, `tgi_core.builtin` first of all.
        entry_points: None = those of every installed distribution.
        blocked: names of plugins that are listed but not imported.
        more_hookspecs: modules with further hooks, as the server's.
    """
    plugins = Plugins()
    for specs in more_hookspecs:
        plugins.manager.add_hookspecs(specs)
    for module in builtins:
        plugins.manager.register(module)
    found = installed_entry_points() if entry_points is None else entry_points
    ours = [e for e in found if re.fullmatch(rf"{PROJECT}\.v\d+", e.group)]
    blocked = set(blocked)
    # pluggy calls the last registered first: so plugins are called by name, then the built-ins, on every machine
    for entry_point in sorted(ours, key=lambda e: e.name, reverse=True):
        plugins.statuses.insert(0, _load(plugins.manager, entry_point, blocked))
    return plugins


def installed_entry_points() -> Iterator[metadata.EntryPoint]:
    """Every entry point of every installed distribution, of any group; of a name found twice, the first on the path."""
    seen: set[str] = set()
    for dist in metadata.distributions():
        if dist.name and dist.name not in seen:
            seen.add(dist.name)
            yield from dist.entry_points


def _load(manager: pluggy.PluginManager, entry_point: metadata.EntryPoint, blocked: set[str]) -> PluginStatus:
    dist = f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "?"
    name = entry_point.name
    if name in blocked:
        return PluginStatus(name, dist, "blocked", "disabled by --disable-plugin")
    if entry_point.group != ENTRY_POINT_GROUP:
        detail = f"speaks plugin API {entry_point.group}, this core speaks {ENTRY_POINT_GROUP}"
        return PluginStatus(name, dist, "incompatible", detail)
    if manager.has_plugin(name):
        return PluginStatus(name, dist, "failed", f"another plugin is already called {name}; uninstall one of them")
    try:
        plugin = entry_point.load()
        manager.register(plugin, name=name)
        manager.check_pending()
    except (Exception, SystemExit) as error:
        log.debug("plugin %s (%s) did not load", name, dist, exc_info=True)
        if manager.has_plugin(name):
            manager.unregister(name=name)
        return PluginStatus(name, dist, "failed", f"{type(error).__name__}: {error}{_hint(error)}")
    return PluginStatus(name, dist, "loaded")


def _hint(error: BaseException) -> str:
    if not isinstance(error, pluggy.PluginValidationError) or "unknown hook" not in str(error):
        return ""
    return "; is it misspelt? A hook of the server is marked with hookimpl(optionalhook=True)"
