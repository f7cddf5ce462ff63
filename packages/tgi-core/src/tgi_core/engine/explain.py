"""What was found, chosen and rejected, as text for a person: `tgi plugins`, `kernels`, `models` and `doctor`.

Only `kernels_report` of a model imports torch.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from tgi_core import builtin
from tgi_core.config import EngineConfig
from tgi_core.cpu import native, processor, topology
from tgi_core.device.select import probe_devices, select_device
from tgi_core.errors import TGIError
from tgi_core.kernels.select import KernelChoice, offered_kernels, select_kernels
from tgi_core.models.select import FALLBACKS, offered_models, select_model, select_model_or_fallback
from tgi_core.plugins.manager import Plugins, load_plugins
from tgi_core.plugins.specs import ANY_DEVICE, DeviceProbe
from tgi_core.weights.source import default_model_id

LIBRARIES = ("tgi-core", "tgi-server", "torch", "transformers", "tokenizers", "safetensors", "gguf", "huggingface_hub")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def plugins_report(plugins: Plugins | None = None) -> str:
    """Every installed plugin, every device, and which device would be used."""
    plugins = plugins or load_plugins([builtin])
    rows = [("PLUGIN", "DISTRIBUTION", "STATE", "WHY"), ("cpu", "tgi-core (built in)", "loaded", "")]
    rows += [
        (status.name, status.distribution, status.state, "; ".join(filter(None, said)))
        for status in plugins.statuses
        for said in [(status.detail, plugins.complaint(status.name))]
    ]
    return "\n\n".join((_table(rows), _devices(plugins), _device_choice(plugins)))


def kernels_report(config: EngineConfig | None = None, plugins: Plugins | None = None) -> str:
    """Every registered kernel; for an engine, the chosen one of each op and why the others were not.

    Raises:
        TGIError: the model cannot be found, or nothing can run it.
    """
    plugins = plugins or load_plugins([builtin])
    if config is None:
        rows = [("OP", "NAME", "DEVICE", "PRIORITY", "PLUGIN")]
        offers = sorted(offered_kernels(plugins), key=lambda offer: (offer[1].op, offer[1].device, offer[1].name))
        rows += [(spec.op, spec.name, spec.device, str(spec.priority), _name(plugin)) for plugin, spec in offers]
        return _table(rows)
    return _kernels_of_engine(config, plugins)


def models_report(plugins: Plugins | None = None) -> str:
    """Every model family, what runs it on each kind of device, and which devices there are."""
    plugins = plugins or load_plugins([builtin])
    probes = list(_probes(plugins))
    rows = [("FAMILY", *(probe.kind.upper() for probe in probes), "ARCHITECTURES", "NOTE")]
    specs = [spec for _, spec in offered_models(plugins)]
    general = [spec for spec in specs if spec.device == ANY_DEVICE]
    known = {name for spec in general for name in spec.architectures}
    for spec in (*general, *(spec for spec in specs if known.isdisjoint(spec.architectures))):
        cells = [_support(plugins, spec.architectures[0], probe) for probe in probes]
        rows += [(family, *cells, ", ".join(spec.architectures), spec.note) for family in spec.families]
    usable = ["yes" if probe.available else "-" for probe in probes]
    rows += [(spec.family, *usable, runs, spec.note) for spec, runs in FALLBACKS]
    return "\n\n".join((_table(rows), *_on_devices(plugins), _devices(plugins)))


def _on_devices(plugins: Plugins) -> list[str]:
    """What implementations for one kind of device say of themselves, where it is not what they say of all."""
    said = {spec.note for _, spec in offered_models(plugins) if spec.device == ANY_DEVICE}
    own = [spec for _, spec in offered_models(plugins) if spec.device != ANY_DEVICE and spec.note not in said]
    rows = [("DEVICE", "FAMILY", "ARCHITECTURES", "HOW IT RUNS THERE")]
    rows += [(spec.device, spec.family, ", ".join(spec.architectures), spec.note) for spec in own]
    return [_table(rows)] if own else []


def doctor_report(plugins: Plugins | None = None) -> str:
    """This machine and installation: what would be used and what is missing."""
    plugins = plugins or load_plugins([builtin])
    facts = [
        ("Python", platform.python_version()),
        ("system", platform.platform()),
        *((name, _version(name)) for name in LIBRARIES),
        ("processor", processor.product()),
        ("threads", topology.threads_report()),
        ("memory", f"{processor.available_bytes() / 2**30:.1f} GiB available"),
        ("memory nodes", topology.nodes_report()),
        ("bfloat16", "fast on this processor" if processor.has_fast_bfloat16() else "slow here: float32 is preferred"),
        ("native CPU kernels", native.unavailable() or f"compiled for {native.variant()}"),
        ("huge pages", _huge_pages()),
        ("default model", default_model_id()),
    ]
    return "\n\n".join((_table(facts), plugins_report(plugins)))


def _kernels_of_engine(config: EngineConfig, plugins: Plugins) -> str:
    from tgi_core.engine.build import kernel_query
    from tgi_core.engine.model_files import find_model
    from tgi_core.engine.resolve import check_wishes, resolve_dtype
    from tgi_core.model_config import architecture, parse_model_config
    from tgi_core.models.architecture import name_architecture
    from tgi_core.models.fallback_config import parse_fallback_config
    from tgi_core.plugins.specs import resolve

    probe, why = select_device(plugins, config.device)
    capabilities = resolve(probe.backend).capabilities
    check_wishes(config, capabilities)
    files = name_architecture(find_model(plugins, config.model_id, download_weights=False))
    spec, fallback = select_model_or_fallback(plugins, architecture(files.config), probe.kind, probe.own_models)
    model = (
        parse_fallback_config(
            files.config, files.folder, trust_remote_code=False, generation_config=files.generation_config
        )
        if fallback
        else parse_model_config(files.config, files.generation_config)
    )
    dtype, dtype_why = resolve_dtype(config, model, capabilities)
    head = [("device", probe.kind, why), ("dtype", dtype, dtype_why), ("model", model.architecture, fallback)]
    if spec.explain:
        reasons = resolve(spec.explain)(files.folder, model, dtype, config)
        chosen = [(reason.setting, reason.value, reason.why) for reason in reasons]
        return "\n\n".join((_table(head), _table([("CHOICE", "VALUE", "WHY"), *chosen])))
    query = kernel_query(config, model, probe.kind, dtype, capabilities)
    _, choices = select_kernels(plugins, query)
    return "\n\n".join((_table(head), _choices_table(choices)))


def _choices_table(choices: dict[str, KernelChoice]) -> str:
    rows = [("OP", "CHOSEN", "PLUGIN", "REJECTED")]
    rows += [(op, c.spec.name, _name(c.provider), "; ".join(c.rejected)) for op, c in choices.items()]
    return _table(rows)


def _devices(plugins: Plugins) -> str:
    rows = [("DEVICE", "USABLE", "WHAT")]
    for probe in _probes(plugins):
        rows.append((probe.kind, "yes" if probe.available else "no", ", ".join(probe.products) or probe.reason))
    return _table(rows)


def _probes(plugins: Plugins) -> Iterable[DeviceProbe]:
    try:
        return probe_devices(plugins)
    except TGIError as error:
        return [DeviceProbe(kind="?", backend="", reason=str(error))]


def _device_choice(plugins: Plugins) -> str:
    try:
        probe, why = select_device(plugins)
    except TGIError as error:
        return f"`tgi serve` would stop: {error}".partition("\n")[0]
    return f"`tgi serve` would use {probe.kind}: {why}; --num-shard divides a model over {_most_ranks(probe)}"


def _most_ranks(probe: DeviceProbe) -> str:
    if probe.divisible:
        return "as many processes as it says, each with its share of the device"
    return f"up to {len(probe.products)} of them" if len(probe.products) > 1 else "several, but there is one"


def _support(plugins: Plugins, architecture: str, probe: DeviceProbe) -> str:
    """What a device has for an architecture: an implementation of its own, core's, or none that could run here."""
    if not probe.available:
        return "-"
    try:
        found = select_model(plugins, architecture, probe.kind, probe.own_models)
    except TGIError:
        return "no"
    return "optimised" if found.device == probe.kind and found.optimised else "yes"


def _name(provider: str) -> str:
    return "core" if provider == builtin.__name__ else provider


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _huge_pages() -> str:
    """What the kernel does with large allocations; PyTorch asks for huge pages for the engine's."""
    try:
        setting = HUGE_PAGES.read_text()
    except OSError:
        return "not known here"
    chosen = setting.partition("[")[2].partition("]")[0]
    return {
        "never": "off: `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` as root speeds up decoding",
    }.get(chosen, f"used ({chosen})")


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, left-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
