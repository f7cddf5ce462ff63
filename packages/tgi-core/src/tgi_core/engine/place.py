"""Where an engine runs: with which plugins, on what device, and over how many ranks its model is divided."""

from __future__ import annotations

from dataclasses import dataclass

from tgi_core import builtin
from tgi_core.config import EngineConfig
from tgi_core.device.backend import DeviceBackend
from tgi_core.device.select import select_device
from tgi_core.errors import ConfigError
from tgi_core.plugins.manager import Plugins, load_plugins
from tgi_core.plugins.specs import DeviceProbe
from tgi_core.plugins.specs import resolve as resolve_target


@dataclass(frozen=True)
class Place:
    """What is known before anything of the model is."""

    plugins: Plugins
    probe: DeviceProbe
    reason: str  #: why this device
    backend: type[DeviceBackend]
    ranks: int


def find_place(config: EngineConfig) -> Place:
    """The place that a person wishes, or the best there is.

    Raises:
        DeviceUnavailable: no device can be used.
        ConfigError: there are too few for so many ranks.
    """
    plugins = load_plugins([builtin], blocked=config.disabled_plugins)
    probe, reason = select_device(plugins, config.device)
    backend: type[DeviceBackend] = resolve_target(probe.backend)
    return Place(plugins, probe, reason, backend, count_ranks(config, probe, backend))


def count_ranks(config: EngineConfig, probe: DeviceProbe, backend: type[DeviceBackend]) -> int:
    """How many ranks a person wishes.

    Raises:
        ConfigError: in text-generation-inference's words where it has some.
    """
    devices = len(probe.products)
    if config.num_shard is not None and config.num_shard < 1:
        raise ConfigError(f"Invalid argument: `num_shard` cannot be < 1. Given: {config.num_shard}")
    if config.sharded and config.num_shard == 1:
        raise ConfigError("Invalid argument: `sharded` is true but `num_shard` <= 1; ask for more, or leave one out")
    if config.sharded and config.num_shard is None and devices < 2:
        raise ConfigError(
            f"not enough {probe.kind} devices: `sharded` is true but only found {devices} {probe.kind} devices"
            + ("; say with --num-shard how many ranks divide this one" if probe.divisible else "")
        )
    ranks = config.num_shard or (devices if config.sharded else 1)
    if backend.divides_itself:
        return 1
    if ranks > 1 and not backend.collectives:
        raise ConfigError(f"--num-shard {ranks}: a model cannot be divided over {probe.kind} devices; leave it out")
    if ranks > devices and not probe.divisible:
        raise ConfigError(
            f"--num-shard {ranks}: only {devices} {probe.kind} devices can be used ({', '.join(probe.products)}); "
            "ask for at most that many"
        )
    return ranks
