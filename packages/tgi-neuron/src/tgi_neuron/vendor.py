"""All that is called of optimum-neuron: the families' classes, their compiled graphs, and the hub's cache of those.

Nothing here is typed by the vendor; whatever it returns is checked where it enters.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tgi_core.errors import ConfigError, DeviceUnavailable, WeightsError
from tgi_core.plugins.libraries import installed_version
from tgi_neuron.compiled import GRAPHS
from tgi_neuron.probe import COMPILER, PLACEHOLDERS
from tgi_neuron.shapes import Shapes

TASK = "text-generation"
MAKERS = ("optimum-neuron", COMPILER, "neuronx-distributed", "torch-neuronx")  #: of graphs

log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """Of everything that a compiled graph depends on."""
    return {name: installed_version(name) for name in MAKERS}


def cores() -> int:
    """Neuron cores that this process may use."""
    from optimum.neuron.utils.system import get_available_cores

    return int(get_available_cores())


def platform() -> str:
    """What graphs are compiled for here: "trn1" (also Inferentia2) or "trn2"."""
    from optimum.neuron.utils.instance import current_instance_type

    try:
        return str(current_instance_type())
    except (RuntimeError, ValueError) as error:
        raise DeviceUnavailable(f"the kind of this machine is not known to optimum-neuron: {error}") from error


class Family:
    """A model's family as optimum-neuron implements it.

    Args:
        folder: with config.json.
        raw: what that file says.
    """

    def __init__(self, folder: Path, raw: Mapping[str, Any]) -> None:
        from optimum.neuron.models.auto_model import get_neuron_model_class
        from transformers import AutoConfig

        self.config = AutoConfig.from_pretrained(folder).get_text_config()
        if getattr(self.config, "head_dim", 0) is None:
            self.config.head_dim = self.config.hidden_size // self.config.num_attention_heads
        _keep_rope(self.config, raw)
        self.folder = folder
        self._class = get_neuron_model_class(self.config.model_type, task=TASK, mode="inference")

    def neuron_config(self, shapes: Shapes) -> Any:
        """Of these shapes, with what the family needs besides."""
        config = self._class._get_neuron_config(
            checkpoint_id=None,
            checkpoint_revision=None,
            instance_type=platform(),
            batch_size=shapes.batch_size,
            sequence_length=shapes.sequence_length,
            tensor_parallel_size=shapes.cores,
            dtype=getattr(torch, shapes.dtype),
        )
        config.continuous_batching = shapes.continuous_batching
        config.on_device_sampling = shapes.samples_on_device
        config.max_context_length = shapes.max_context_length
        config.max_topk = min(shapes.max_top_k, self.config.vocab_size)
        return config

    def compile(self, neuron_config: Any) -> Any:
        """Graphs without weights; takes minutes to hours, or as long as a download from the hub's cache.

        Raises:
            ConfigError: there is no compiler, or it failed.
        """
        if not (version := installed_version(COMPILER)) or version in PLACEHOLDERS[COMPILER]:
            raise ConfigError(
                f"the model is not compiled yet, and there is no {COMPILER}; install it from the AWS Neuron package "
                "repository, or name a model that was exported with optimum-neuron"
            )
        try:
            made = self._class.export(str(self.folder), neuron_config, config=self.config, load_weights=False)
        except Exception as error:  # whatever a compiler stumbles over
            raise ConfigError(
                f"the model could not be compiled for {Shapes.from_config(as_json(neuron_config))}: {error}; "
                "ask for a smaller --max-batch-size or --max-total-tokens, or read the compiler's log"
            ) from error
        return made._traced_model

    @property
    def name(self) -> str:
        """The vendor's name of it."""
        return str(self.config.model_type)

    def load(self, graphs: Path) -> Any:
        """The model of compiled graphs, without weights.

        Raises:
            WeightsError: the file of the graphs is damaged.
        """
        neuron_config = read_neuron_config(graphs)
        self.config.torch_dtype = neuron_config.torch_dtype
        try:
            traced = torch.jit.load(str(graphs / GRAPHS))  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError, ValueError) as error:
            raise WeightsError(
                f"{graphs / GRAPHS} cannot be loaded ({error}); export the model again, or delete the folder if it is "
                "one that tgi made"
            ) from error
        builders = self._class.create_graph_builders(self.config, neuron_config)
        return self._class(self.config, neuron_config, traced, builders)


def save_graphs(traced: Any, folder: Path) -> None:
    """Write what `Family.load` reads."""
    torch.jit.save(traced, str(folder / GRAPHS))


def read_neuron_config(folder: Path) -> Any:
    """The neuron_config.json of a compiled model.

    Raises:
        ConfigError: it was compiled for another machine.
    """
    from optimum.neuron.models.inference.backend.config import NxDNeuronConfig

    config = NxDNeuronConfig.from_pretrained(folder)
    here = platform()
    if config.target not in (None, here):
        raise ConfigError(
            f"{folder} was compiled for {config.target} and this machine is {here}; "
            "name the original checkpoint to have it compiled anew"
        )
    if config.speculation_length:
        raise ConfigError(f"{folder} was compiled for speculative decoding; export it without speculation_length")
    return config


def as_json(neuron_config: Any) -> dict[str, Any]:
    """What neuron_config.json says of it."""
    found: dict[str, Any] = json.loads(neuron_config.to_json_string())
    return found


def hub_cached(model_id: str) -> list[dict[str, Any]]:
    """What the hub's cache has compiled for a model and this kind of machine; nothing where it cannot be asked."""
    from optimum.neuron.cache.hub_cache import get_hub_cached_entries

    try:
        entries = [dict(entry) for entry in get_hub_cached_entries(model_id, task=TASK)]
    except Exception as error:  # a network, a token, or a model that the hub does not know
        log.info("the hub's cache of compiled models could not be asked: %s", error)
        return []
    return [entry for entry in entries if entry.get("target") == platform()]


def _keep_rope(config: Any, raw: Mapping[str, Any]) -> None:
    """Read what transformers 5 writes into config.json, which the one that optimum-neuron needs does not know."""
    rope = raw.get("rope_parameters")
    if not rope:
        return
    config.rope_theta = rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))
    if rope.get("rope_type", "default") != "default":
        config.rope_scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
