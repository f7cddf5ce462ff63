"""Which compiled graphs a model runs on: exported ones, the best of those that are kept, or ones to be compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgi_core.config import EngineConfig
from tgi_core.errors import ConfigError, UnsupportedModel
from tgi_core.model_config import ModelConfig
from tgi_core.stats import Reason
from tgi_neuron import environment, vendor
from tgi_neuron.compiled import SHAPES, CompiledModels
from tgi_neuron.families import longest, why_not_on_device, why_unfit
from tgi_neuron.shapes import Shapes, Wish, best_cached, check_artifact, to_compile, wishes


@dataclass(frozen=True)
class Plan:
    """What was chosen."""

    shapes: Shapes
    folder: Path | None  #: of the graphs; None = they are to be compiled,
    kept: CompiledModels  #: and kept here
    reasons: tuple[Reason, ...]


def make_plan(folder: Path, model: ModelConfig, dtype: str, config: EngineConfig) -> Plan:
    """Choose, without compiling anything.

    Args:
        folder: of the model.
        dtype: that the checkpoint would run in on this device, where nobody asks for one.
        config: what a person asks for, beside variables.

    Raises:
        UnsupportedModel: optimum-neuron would compute something else than the checkpoint says.
        ConfigError: wishes contradict each other, the device, or an exported model.
    """
    if what := why_unfit(model.raw):
        raise UnsupportedModel(
            f"{model.architecture}: this checkpoint has {what}, which optimum-neuron does not look at; "
            "serve it on another device"
        )
    if config.quantize:
        raise ConfigError(f"--quantize {config.quantize}: Neuron graphs compute whole weights; leave it out")
    variables = environment.read()
    versions = {**vendor.versions(), "platform": vendor.platform()}
    kept = CompiledModels(variables.cache, model.raw, versions)
    asked, cores = wishes(config, variables), vendor.cores()
    plan = (
        _exported(folder, kept, asked, cores)
        or _kept(kept, asked, cores, dtype)
        or _cached_by_hub(config.model_id, kept, asked, cores, dtype)
        or _new(model.raw, kept, asked, cores, dtype)
    )
    if plan.shapes.samples_on_device and (reason := why_not_on_device(model.raw, plan.shapes.cores)):
        raise ConfigError(f"{reason}; serve the original checkpoint with {environment.SAMPLING}=host")
    return plan


def explain(folder: Path, model: ModelConfig, dtype: str, config: EngineConfig) -> list[Reason]:
    """What would be chosen; see `make_plan`."""
    return list(make_plan(folder, model, dtype, config).reasons)


def _exported(folder: Path, kept: CompiledModels, asked: list[Wish], cores: int) -> Plan | None:
    if not (folder / SHAPES).exists():
        return None
    shapes = Shapes.from_config(vendor.as_json(vendor.read_neuron_config(folder)))
    check_artifact(shapes, asked)
    if shapes.cores > cores:
        raise ConfigError(f"the model was compiled for {shapes.cores} Neuron cores and there are {cores}")
    return Plan(shapes, folder, kept, (_reason(shapes, f"what {folder} was compiled for"),))


def _kept(kept: CompiledModels, asked: list[Wish], cores: int, dtype: str) -> Plan | None:
    folders = {Shapes.from_config(config): folder for folder, config in kept.entries()}
    best = best_cached(folders, asked, cores, dtype)
    if best is None:
        return None
    why = f"the best of {len(folders)} kept in {kept.of_model}"
    return Plan(best, folders[best], kept, (_reason(best, why),))


def _cached_by_hub(model_id: str, kept: CompiledModels, asked: list[Wish], cores: int, dtype: str) -> Plan | None:
    cached = [Shapes.from_config(entry) for entry in vendor.hub_cached(model_id)]
    best = best_cached(cached, asked, cores, dtype)
    if best is None:
        return None
    why = f"the best of {len(cached)} in the hub's cache that are for {vendor.platform()}"
    return Plan(best, None, kept, (_reason(best, why),))


def _new(raw: Mapping[str, Any], kept: CompiledModels, asked: list[Wish], cores: int, dtype: str) -> Plan:
    shapes, reasons = to_compile(asked, cores=cores, dtype=dtype, longest=longest(raw))
    why = f"nothing that fits was compiled before; it will be kept in {kept.of_model}"
    return Plan(shapes, None, kept, (_reason(shapes, why), *reasons))


def _reason(shapes: Shapes, why: str) -> Reason:
    return Reason("neuron shapes", str(shapes), why)
