"""Finds plugins, loads each behind a guard, and remembers what became of it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from tgi_core.deprecation import deprecation
from tgi_core.errors import PluginFailed
from tgi_core.plugins import ENTRY_POINT_GROUP, PROJECT, hookspecs
from tgi_core.plugins.libraries import installed_version
from tgi_core.plugins.specs import KernelSpec, LogitsProcessorSpec, ModelSpec, QuantizationSpec
from tgi_core.plugins.versions import CORE, made_for_another

log = logging.getLogger(__name__)
Record = TypeVar("Record")
#: the core's registration hooks -> what they return
REGISTRATIONS: Mapping[str, type[object]] = {
    "tgi_register_kernels": KernelSpec,
    "tgi_register_models": ModelSpec,
    "tgi_register_quantization": QuantizationSpec,
    "tgi_register_logits_processors": LogitsProcessorSpec,
}


@dataclass(frozen=True)
class PluginStatus:
    """One line of `tgi plugins`."""

    name: str
    distribution: str  #: "tgi-cuda 1.4.0"
    state: str  #: loaded | blocked | incompatible | failed
    detail: str = ""  #: for a person, why it is not loaded, or what may go wrong with it


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

    def collect(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Yield (plugin name, result) of a hook.

        Raises:
            PluginFailed: a plugin raised.
        """
        for impl in self.implementations(hook):
            with _blaming(impl.plugin_name, hook):
                result = impl.function(**{name: arguments[name] for name in impl.argnames})
            yield impl.plugin_name, result

    def registered(self, hook: str, kind: type[Record]) -> Iterator[tuple[str, Record]]:
        """Yield (plugin name, record) of everything that plugins register with a hook.

        Raises:
            PluginFailed: a plugin raised, or returned something else.
        """
        for impl in self.implementations(hook):
            yield from ((impl.plugin_name, record) for record in _records(impl, hook, kind))

    def complaint(self, plugin: str) -> str:
        """What is wrong with what a loaded plugin registers; "" where nothing is."""
        try:
            for hook, kind in REGISTRATIONS.items():
                for impl in self.implementations(hook):
                    if impl.plugin_name == plugin:
                        _records(impl, hook, kind)
        except PluginFailed as error:
            return str(error)
        return ""

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
    ours = _in_our_api([e for e in found if re.fullmatch(rf"{PROJECT}\.v\d+", e.group)])
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


def _records(impl: pluggy.HookImpl, hook: str, kind: type[Record]) -> list[Record]:
    function: Callable[[], Any] = impl.function
    with _blaming(impl.plugin_name, hook):
        records = list(function())
        for record in records:
            if not isinstance(record, kind):
                raise TypeError(f"returned a {type(record).__name__} where a {kind.__name__} was expected")
    return records


@contextmanager
def _blaming(plugin: str, hook: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        raise PluginFailed(
            f"plugin {plugin} failed in {hook}: {type(error).__name__}: {error}; "
            f"install a release of it that works, or start without it: --disable-plugin {plugin}"
        ) from error


def _in_our_api(found: list[metadata.EntryPoint]) -> list[metadata.EntryPoint]:
    """Without what a distribution offers to other versions of the API beside what it offers to this one."""
    spoken = {_owner(entry_point) for entry_point in found if entry_point.group == ENTRY_POINT_GROUP}
    return [e for e in found if e.group == ENTRY_POINT_GROUP or _owner(e) not in spoken]


def _owner(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    return entry_point.dist.name if entry_point.dist else "", entry_point.name


def _load(manager: pluggy.PluginManager, entry_point: metadata.EntryPoint, blocked: set[str]) -> PluginStatus:
    dist = f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "?"
    name = entry_point.name
    if name in blocked:
        return PluginStatus(name, dist, "blocked", "disabled by --disable-plugin")
    if entry_point.group != ENTRY_POINT_GROUP:
        detail = (
            f"speaks plugin API {entry_point.group}, this core speaks {ENTRY_POINT_GROUP}; "
            f"install releases of it and of tgi-core that speak the same one"
        )
        return PluginStatus(name, dist, "incompatible", detail)
    if manager.has_plugin(name):
        return PluginStatus(name, dist, "failed", f"another plugin is already called {name}; uninstall one of them")
    try:
        plugin = entry_point.load()
        manager.register(plugin, name=name)
        manager.check_pending()
        if not manager.get_hookcallers(plugin):
            raise LookupError("it has no hook; mark its functions with tgi_core.plugins.hookimpl")
    except (Exception, SystemExit) as error:
        log.debug("plugin %s (%s) did not load", name, dist, exc_info=True)
        if manager.has_plugin(name):
            manager.unregister(name=name)
        why = f"{type(error).__name__}: {error}{_hint(error)}"
        return PluginStatus(name, dist, "failed", "; ".join(filter(None, (why, _out_of_range(entry_point)))))
    old = list(_deprecated_hooks(manager, plugin))
    for said in old:
        warnings.warn(f"plugin {name}: {said}", DeprecationWarning, stacklevel=2)
    return PluginStatus(name, dist, "loaded", "; ".join(filter(None, (_out_of_range(entry_point), *old))))


def _out_of_range(entry_point: metadata.EntryPoint) -> str:
    return made_for_another(entry_point.dist, installed_version(CORE)) if entry_point.dist else ""


def _deprecated_hooks(manager: pluggy.PluginManager, plugin: object) -> Iterator[str]:
    """What is said of the hooks that a plugin implements although they are going away."""
    for caller in manager.get_hookcallers(plugin) or ():
        if caller.spec and (said := deprecation(caller.spec.function)):
            yield said


def _hint(error: BaseException) -> str:
    if not isinstance(error, pluggy.PluginValidationError) or "unknown hook" not in str(error):
        return ""
    return "; is it misspelt? A hook of the server is marked with hookimpl(optionalhook=True)"
