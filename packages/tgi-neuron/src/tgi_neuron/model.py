"""A decoder of optimum-neuron: found compiled, or compiled now, and filled with the checkpoint's weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tgi_core.device.capabilities import Capabilities
from tgi_core.errors import ConfigError, UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import LanguageModel
from tgi_core.stats import Reason
from tgi_core.weights.reader import WeightReader
from tgi_neuron import environment, vendor
from tgi_neuron.compiled import SHAPES, CompiledModels
from tgi_neuron.families import longest, why_not_on_device, why_unfit
from tgi_neuron.shapes import Shapes, best_cached, check_artifact, to_compile, wishes

ONLY_TOKENS = "the model was compiled to sample on the device, which gives tokens only"
TO_THE_HOST = f"{ONLY_TOKENS}; serve one compiled with {environment.SAMPLING}=host"
#: fields of SamplingParams that need logits on the host
HOST_ONLY = (
    "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "watermark",
    "min_new_tokens", "top_n_tokens", "logprobs", "seed", "extra",
)  # fmt: skip
LAST_ONLY = "compiled graphs give the logits of a prompt's last token only; leave it out"

log = logging.getLogger(__name__)


class NeuronDecoder(LanguageModel):
    """`graphs` takes and gives what optimum-neuron's `NxDModelForCausalLM.forward` does.

    Raises:
        UnsupportedModel: optimum-neuron would compute something else than the checkpoint says.
        ConfigError: wishes contradict each other, or a compiled model.
    """

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        if what := why_unfit(config.raw):
            raise UnsupportedModel(
                f"{config.architecture}: this checkpoint has {what}, which optimum-neuron does not look at; "
                "serve it on another device"
            )
        if build.wishes.quantize:
            raise ConfigError(f"--quantize {build.wishes.quantize}: Neuron graphs compute whole weights; leave it out")
        self.folder = build.folder
        self.family = vendor.Family(build.folder, config.raw)
        found = _Search(self.family, config, build)
        self.shapes, self.reasons = found.shapes, tuple(found.reasons)
        self.graphs = self.family.load(found.folder, found.neuron_config)

    def load_weights(self, reader: WeightReader, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """optimum-neuron reads the folder itself, and moves weights to the cores."""
        progress(0.0)
        self.graphs.load_weights(str(self.folder))
        progress(1.0)

    def logits(self, hidden: Tensor) -> Tensor:
        """The graphs give logits [B, V] at once."""
        return hidden

    def narrow(self, capabilities: Capabilities) -> Capabilities:
        """To the compiled shapes, and to what their graphs give."""
        refused = {"prompt_logprobs": LAST_ONLY}
        if self.shapes.samples_on_device:
            refused |= dict.fromkeys(HOST_ONLY, TO_THE_HOST)
        return replace(
            capabilities,
            dtypes=(self.shapes.dtype,),
            batch_buckets=(self.shapes.batch_size,),
            prefill_buckets=(self.shapes.max_context_length,),
            max_sequences=self.shapes.batch_size,
            max_len=min(self.shapes.sequence_length, longest(self.config.raw)),
            max_prompt_len=self.shapes.max_context_length,
            refused_parameters=refused,
            max_top_k=self.shapes.max_top_k if self.shapes.samples_on_device else None,
        )


class _Search:
    """Finds or makes a model's graphs: `shapes`, their `folder` and `neuron_config`, and the `reasons`."""

    def __init__(self, family: vendor.Family, config: ModelConfig, build: BuildContext) -> None:
        variables = environment.read()
        self._family, self._config, self._build = family, config, build
        self._asked = wishes(build.wishes, variables)
        self._cores = vendor.cores()
        self._kept = CompiledModels(variables.cache, config.raw, vendor.versions())
        self.folder, self.neuron_config, self.reasons = self._find()
        self.shapes = Shapes.from_config(vendor.as_json(self.neuron_config))
        if self.shapes.samples_on_device and (reason := why_not_on_device(config.raw, self.shapes.cores)):
            raise ConfigError(f"{reason}; serve the original checkpoint with {environment.SAMPLING}=host")

    def _find(self) -> tuple[Path, Any, list[Reason]]:
        if (self._build.folder / SHAPES).exists():
            return self._exported()
        entries = {folder: Shapes.from_config(config) for folder, config in self._kept.entries()}
        best = best_cached(entries.values(), self._asked, self._cores)
        if best is not None:
            folder = next(folder for folder, shapes in entries.items() if shapes == best)
            why = f"the best of {len(entries)} kept in {self._kept.of_model} that fit"
            return folder, vendor.read_neuron_config(folder), [Reason("neuron shapes", str(best), why)]
        return self._compiled_now()

    def _exported(self) -> tuple[Path, Any, list[Reason]]:
        neuron_config = vendor.read_neuron_config(self._build.folder)
        shapes = Shapes.from_config(vendor.as_json(neuron_config))
        check_artifact(shapes, self._asked)
        if shapes.cores > self._cores:
            raise ConfigError(f"the model was compiled for {shapes.cores} Neuron cores and there are {self._cores}")
        why = f"what {self._build.folder} was compiled for"
        return self._build.folder, neuron_config, [Reason("neuron shapes", str(shapes), why)]

    def _compiled_now(self) -> tuple[Path, Any, list[Reason]]:
        shapes, reasons = self._shapes_to_compile()
        neuron_config = self._family.neuron_config(shapes)
        log.warning("compiling %s for %s; this can take an hour", self._config.architecture, shapes)
        graphs = self._family.compile(neuron_config)
        folder = self._kept.add(vendor.as_json(neuron_config), lambda to: vendor.save_graphs(graphs, to))
        kept = Reason("neuron shapes", str(shapes), f"compiled now, and kept in {folder}")
        return folder, neuron_config, [kept, *reasons]

    def _shapes_to_compile(self) -> tuple[Shapes, list[Reason]]:
        cached = [Shapes.from_config(entry) for entry in vendor.hub_cached(self._build.wishes.model_id)]
        best = best_cached(cached, self._asked, self._cores)
        if best is not None:
            why = f"the best of {len(cached)} in the hub's cache that are for {vendor.platform()}"
            return best, [Reason("neuron configuration", str(best), why)]
        return to_compile(
            self._asked,
            cores=self._cores,
            dtype=self._dtype(),
            longest=longest(self._config.raw),
        )

    def _dtype(self) -> str:
        return str(self._build.dtype).removeprefix("torch.")
