"""To what a model is compiled: chosen from wishes, from a compiled model, or from the compiled ones that are cached.

Pure; the numbers are optimum-neuron's (`NxDNeuronConfig`), whose names they keep in files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tgi_core.config import EngineConfig
from tgi_core.errors import ConfigError
from tgi_core.stats import Reason
from tgi_neuron.environment import CAST, CORES, SAMPLING, Variables

BATCH_SIZE = 4  #: sequences at once, where nobody says
SEQUENCE_LENGTH = 4096  #: tokens of each, where nobody says; KV cache is allocated for all of them


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Of a compiled model."""

    batch_size: int  #: slots
    sequence_length: int  #: tokens of prompt and output that a slot holds
    max_context_length: int  #: tokens that every prompt is padded to
    cores: int
    dtype: str
    sampling: str  #: on the "host" or the "device"
    max_top_k: int = 256  #: where it samples
    continuous_batching: bool = True  #: prompts are read one by one, beside the slots of others

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Shapes:
        """Of a neuron_config.json, or of an entry of the hub's cache.

        Raises:
            ConfigError: it is of another kind of model.
        """
        try:
            batch_size, sequence_length = int(config["batch_size"]), int(config["sequence_length"])
            cores = int(config["tp_degree"])
            dtype = config.get("torch_dtype") or config["dtype"]
        except KeyError as error:
            raise ConfigError(
                f"neuron_config.json has no {error.args[0]}; export the model again with optimum-neuron 0.4"
            ) from error
        return cls(
            batch_size=batch_size,
            sequence_length=sequence_length,
            max_context_length=int(config.get("max_context_length") or sequence_length),
            cores=cores,
            dtype=str(dtype).removeprefix("torch."),
            sampling="device" if config.get("on_device_sampling") else "host",
            max_top_k=int(config.get("max_topk") or 256),
            continuous_batching=bool(config.get("continuous_batching")),
        )

    @property
    def samples_on_device(self) -> bool:
        """Whether graphs give tokens, and no logits."""
        return self.sampling == "device"

    def __str__(self) -> str:
        return (
            f"{self.batch_size} sequences of {self.sequence_length} tokens, {self.dtype}, "
            f"{self.cores} core{'s' if self.cores > 1 else ''}, sampling on the {self.sampling}"
        )


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One number or name that a person gave."""

    field: str  #: of Shapes
    source: str  #: what they typed it as
    value: Any


def wishes(config: EngineConfig, variables: Variables) -> list[Wish]:
    """What a person asks for, by flags and variables.

    Raises:
        ConfigError: a flag and a variable contradict each other.
    """
    given = (
        Wish(field="batch_size", source="--max-batch-size", value=config.max_batch_size),
        Wish(field="sequence_length", source="--max-total-tokens", value=config.max_total_tokens),
        Wish(field="cores", source="--num-shard", value=config.num_shard),
        Wish(field="cores", source=CORES, value=variables.cores),
        Wish(field="dtype", source="--dtype", value=config.dtype),
        Wish(field="dtype", source=CAST, value=variables.dtype),
        Wish(field="sampling", source=SAMPLING, value=variables.sampling),
    )
    found: dict[str, Wish] = {}
    for wish in given:
        if wish.value is None:
            continue
        other = found.setdefault(wish.field, wish)
        if other.value != wish.value:
            raise ConfigError(
                f"{other.source} {other.value} and {wish.source}={wish.value} contradict each other; give one of them"
            )
    return list(found.values())


def check_artifact(shapes: Shapes, asked: Iterable[Wish]) -> None:
    """Refuse a compiled model that is not what was asked for.

    Raises:
        ConfigError: names every difference and what to do.
    """
    wrong = [wish for wish in asked if getattr(shapes, wish.field) != wish.value]
    if wrong:
        differences = ", ".join(
            f"{wish.source} asks for {wish.value} but the model has {getattr(shapes, wish.field)}" for wish in wrong
        )
        raise ConfigError(
            f"the model was compiled for {shapes}: {differences}; leave {'them' if len(wrong) > 1 else 'it'} out, "
            "or name the original checkpoint to have it compiled anew"
        )
    if not shapes.continuous_batching and shapes.batch_size > 1:
        raise ConfigError(
            f"the model was compiled to read {shapes.batch_size} prompts at once, so that none can join later; "
            "export it with continuous_batching=True, or with a batch size of 1"
        )


def best_cached(cached: Iterable[Shapes], asked: Iterable[Wish], cores: int, dtype: str) -> Shapes | None:
    """The compiled model that fits the wishes and these cores: in this dtype, of most cores, sequences and tokens."""
    asked = list(asked)
    fitting = [
        shapes
        for shapes in cached
        if shapes.cores <= cores
        and (shapes.continuous_batching or shapes.batch_size == 1)
        and all(getattr(shapes, wish.field) == wish.value for wish in asked)
    ]

    def quality(shapes: Shapes) -> tuple[bool, int, int, int, bool]:
        has_logits = not shapes.samples_on_device
        return shapes.dtype == dtype, shapes.cores, shapes.batch_size, shapes.sequence_length, has_logits

    return max(fitting, key=quality, default=None)


def to_compile(asked: Iterable[Wish], *, cores: int, dtype: str, longest: int) -> tuple[Shapes, list[Reason]]:
    """Shapes to compile for, where nothing compiled fits.

    Args:
        cores: that there are.
        dtype: of the checkpoint, or the best that the device has.
        longest: sequence that the model can compute.

    Raises:
        ConfigError: a wish is more than model or device allow.
    """
    length = min(SEQUENCE_LENGTH, longest)
    shapes = Shapes(
        batch_size=BATCH_SIZE,
        sequence_length=length,
        max_context_length=length,
        cores=cores,
        dtype=dtype,
        sampling="host",
    )
    why = {
        "batch_size": "slots, where nobody says; more take more memory and time for each token",
        "sequence_length": "tokens of a slot, where nobody says"
        if length == SEQUENCE_LENGTH
        else "all that the model computes",
        "cores": "all that there are",
        "dtype": "the device's best for this checkpoint",
        "sampling": "the host's sampler knows all parameters",
    }
    most = {"sequence_length": (longest, "the model computes {} tokens here"), "cores": (cores, "there are {} cores")}
    for wish in asked:
        limit, message = most.get(wish.field, (wish.value, ""))
        if wish.value > limit:
            raise ConfigError(f"{wish.source} {wish.value}: {message.format(limit)}; ask for at most that many")
        shapes = replace(shapes, **{wish.field: wish.value})
        del why[wish.field]
    shapes = replace(shapes, max_context_length=shapes.sequence_length, continuous_batching=shapes.batch_size > 1)
    return shapes, [Reason(f"neuron {name}", str(getattr(shapes, name)), text) for name, text in why.items()]
