"""What plugins hand to the core: frozen data, with code named by target so that listing imports nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tgi_core.errors import PluginFailed, TGIError

ANY_DEVICE = "any"
#: JSON's names of types -> Python's
JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


def resolve(target: str) -> Any:
    """The object named by a `package.module:attribute` target.

    Raises:
        PluginFailed: it is not there, or cannot be imported.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except TGIError:
        raise
    except Exception as error:
        raise PluginFailed(
            f"{target or 'a target'} cannot be imported: {type(error).__name__}: {error}; install what it needs, "
            "or start without the plugin that offers it: --disable-plugin NAME (`tgi plugins` lists them)"
        ) from error


@dataclass(frozen=True, kw_only=True)
class DeviceProbe:
    """One vendor's answer to: can you run here?"""

    kind: str  #: device name on the command line: "cuda", "rocm", "gaudi", "neuron", "cpu"
    backend: str  #: target of the DeviceBackend subclass
    products: tuple[str, ...] = ()  #: one product name per usable device
    reason: str = ""  #: why there is none, a sentence for a person
    divisible: bool = False  #: any number of ranks can share one device
    own_models: str = ""  #: why models are refused that this vendor registers no implementation of; "" = core's do

    @property
    def available(self) -> bool:
        """Whether at least one device can be used."""
        return bool(self.products)


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """One implementation of one op on one kind of device."""

    op: str  #: a field of `tgi_core.kernels.ops.Kernels`
    name: str  #: what a person types to choose it: "flashinfer", "triton"
    target: str
    device: str = ANY_DEVICE
    supports: str = ""  #: target of (KernelQuery) -> str, the reason why not; "" means it can
    priority: int = 0  #: among implementations for the same device, the highest wins
    #: with `KernelQuery.deterministic`, a row's result is bit by bit the same whatever rows are beside it, and however
    #: many; that of attention also however a sequence was cut into steps.  Kernels that say no are refused then
    batch_invariant: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One implementation of one or more Hugging Face architectures."""

    architectures: tuple[str, ...]  #: as config.json names them: "LlamaForCausalLM"
    target: str
    device: str = ANY_DEVICE
    priority: int = 0
    family: str = ""  #: names in `tgi models`, each a row: "Llama, Llama 2, Code Llama"
    note: str = ""  #: a limit or a hint, shown beside it
    explain: str = ""  #: target of (folder, ModelConfig, dtype, EngineConfig) -> Reasons; "" = it takes core's kernels
    optimised: bool = True  #: where it is for one device: measured there, and said so by `tgi models`

    @property
    def families(self) -> list[str]:
        """The names of the families that this serves."""
        return self.family.split(", ")


@dataclass(frozen=True, kw_only=True)
class QuantizationSpec:
    """One way to keep weights in fewer bits."""

    name: str  #: what a person types after --quantize
    target: str  #: of the `tgi_core.quantization.base.Quantization` subclass
    matches: str = ""  #: target of (config.json's quantization_config) -> bool; "" = quantises plain weights on loading


@dataclass(frozen=True, kw_only=True)
class LogitsProcessorSpec:
    """One change to logits before sampling, switched on by request parameters of its own.

    Clients give them beside the others (`{"parameters": {"my_field": 1}}`, or in OpenAI's body); the processor finds
    them in `SamplingParams.extra`.
    """

    name: str
    target: str  #: of the `tgi_core.sampling.processors.base.LogitsProcessor` subclass
    order: int  #: ascending; TGI's own processors stand at 100, 200, ...
    parameters: Mapping[str, str] = field(default_factory=dict)  #: request field -> a key of JSON_TYPES
