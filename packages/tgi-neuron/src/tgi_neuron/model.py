"""A decoder of optimum-neuron: found compiled, or compiled now, and filled with the checkpoint's weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tgi_core.device.capabilities import Capabilities
from tgi_core.errors import ConfigError, WeightsError
from tgi_core.layers.build import BuildContext
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import LanguageModel
from tgi_core.sampling.rules import TokenRules, token_rules
from tgi_core.weights.reader import WeightReader
from tgi_core.weights.source import read_json
from tgi_neuron import environment, vendor
from tgi_neuron.families import longest
from tgi_neuron.plan import Plan, make_plan

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
        UnsupportedModel, ConfigError: see `make_plan`.
    """

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.folder = build.folder
        plan = make_plan(build.folder, config, str(build.dtype).removeprefix("torch."), build.wishes)
        self.shapes, self.reasons = plan.shapes, plan.reasons
        if self.shapes.samples_on_device:
            _check_rules(build.folder, config)
        family = vendor.Family(build.folder, config.raw)
        self.graphs = family.load(plan.folder or _compile(family, plan))

    def load_weights(self, reader: WeightReader, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """optimum-neuron reads the folder itself, and moves weights to the cores."""
        progress(0.0)
        try:
            self.graphs.load_weights(str(self.folder))
        except Exception as error:  # of whatever reads, divides and moves them
            raise WeightsError(
                f"{self.folder}: optimum-neuron cannot load these weights ({error}); it reads safetensors, and what it "
                "has exported itself"
            ) from error
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


def _check_rules(folder: Path, config: ModelConfig) -> None:
    """Refuse rules of a model that would be forgotten where the device samples."""
    file = folder / "generation_config.json"
    generation = read_json(file) if file.exists() else {}
    rules = token_rules((generation, config.raw), (), config.vocab_size)
    if rules != TokenRules():
        raise ConfigError(
            f"{folder} forces or forbids tokens (suppress_tokens, bad_words_ids, forced_..._token_id), of which graphs "
            f"that sample on the device know nothing; serve it with {environment.SAMPLING}=host"
        )


def _compile(family: vendor.Family, plan: Plan) -> Path:
    """The folder of graphs that are compiled now."""
    log.warning("compiling %s for %s; this can take an hour", family.name, plan.shapes)
    neuron_config = family.neuron_config(plan.shapes)
    graphs = family.compile(neuron_config)
    return plan.kept.add(vendor.as_json(neuron_config), lambda folder: vendor.save_graphs(graphs, folder))
