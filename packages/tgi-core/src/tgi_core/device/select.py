"""Chooses the device.  The CPU is never a silent fallback."""

from __future__ import annotations

from collections.abc import Iterator

import pluggy

from tgi_core.errors import DeviceUnavailable, RegistrationConflict
from tgi_core.plugins.manager import Plugins
from tgi_core.plugins.specs import DeviceProbe

CPU = "cpu"


def probe_devices(plugins: Plugins) -> list[DeviceProbe]:
    """Ask every vendor.  A probe that raises counts as unavailable, with the error as its reason.

    Raises:
        RegistrationConflict: two plugins offer the same kind of device.
    """
    probes: dict[str, tuple[str, DeviceProbe]] = {}
    for provider, probe in _probes(plugins):
        if probe.kind in probes:
            raise RegistrationConflict(
                f"device {probe.kind!r} is offered by {probes[probe.kind][0]} and {provider}; uninstall one, "
                f"or pass --disable-plugin {probes[probe.kind][0]} or --disable-plugin {provider}"
            )
        probes[probe.kind] = (provider, probe)
    return [probe for _, probe in probes.values()]


def _probes(plugins: Plugins) -> Iterator[tuple[str, DeviceProbe]]:
    impls = plugins.manager.hook.tgi_probe_device.get_hookimpls()
    for impl in sorted(impls, key=lambda impl: impl.plugin_name):
        yield impl.plugin_name, _probe(impl)


def _probe(impl: pluggy.HookImpl) -> DeviceProbe:
    try:
        probe = impl.function()
    except (Exception, SystemExit) as error:
        wrong = f"raised {type(error).__name__}: {error}"
    else:
        if isinstance(probe, DeviceProbe):
            return probe
        wrong = f"returned a {type(probe).__name__} where a DeviceProbe was expected"
    reason = f"its probe {wrong}; install a release that works"
    return DeviceProbe(kind=impl.plugin_name, backend="", reason=reason)


def select_device(plugins: Plugins, wish: str | None = None) -> tuple[DeviceProbe, str]:
    """The device to run on, and why: the wished one, or the only accelerator, or the CPU where no plugin offers one.

    Raises:
        DeviceUnavailable: with one line per vendor that says why it cannot be used.
    """
    probes = {probe.kind: probe for probe in probe_devices(plugins)}
    if wish:
        if wish not in probes or not probes[wish].available:
            why = "" if wish in probes else ": no plugin offers it"
            raise DeviceUnavailable(f"device {wish!r} cannot be used{why}; choose another\n{_report(plugins, probes)}")
        return probes[wish], "--device asked for it"
    accelerators = [probe for kind, probe in probes.items() if kind != CPU]
    usable = [probe for probe in accelerators if probe.available]
    if len(usable) == 1:
        return usable[0], "the only accelerator that can be used"
    if len(usable) > 1:
        raise DeviceUnavailable(f"several devices can be used; choose with --device\n{_report(plugins, probes)}")
    if accelerators:
        raise DeviceUnavailable(
            "an accelerator plugin is installed but its device cannot be used; "
            f"--device cpu runs on the host\n{_report(plugins, probes)}"
        )
    if plugins.failed:
        raise DeviceUnavailable(
            "a plugin could not be loaded, and may be an accelerator's; install a release that works, or start without "
            f"it: --disable-plugin {plugins.failed[0].name}, or --device cpu\n{_report(plugins, probes)}"
        )
    return probes[CPU], "no hardware plugin is installed"


def _report(plugins: Plugins, probes: dict[str, DeviceProbe]) -> str:
    lines = [f"  {probe.kind}: {', '.join(probe.products) or probe.reason}" for probe in probes.values()]
    lines += [f"  plugin {status.name} ({status.distribution}): {status.detail}" for status in plugins.failed]
    return "\n".join(lines)
