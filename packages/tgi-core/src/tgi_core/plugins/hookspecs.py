"""Every point at which a plugin can extend the core.

Registration hooks take nothing and return frozen records; the order of plugins never matters.  Decision hooks are
asked plugin by plugin, by name, until one answers.  Observation hooks are called at most once per step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tgi_core.plugins import hookspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Any

    from tgi_core.plugins.specs import DeviceProbe, KernelSpec, LogitsProcessorSpec, ModelSpec, QuantizationSpec
    from tgi_core.stats import EngineInfo, StepStats


@hookspec
def tgi_probe_device() -> DeviceProbe:
    """Say whether this vendor's devices can be used on this host, and if not, why not.

    Answers within a second, imports no torch and opens no device context.
    """


@hookspec
def tgi_register_kernels() -> Iterable[KernelSpec]:
    """Offer implementations of ops."""


@hookspec
def tgi_register_models() -> Iterable[ModelSpec]:
    """Offer implementations of model architectures."""


@hookspec
def tgi_register_quantization() -> Iterable[QuantizationSpec]:
    """Offer ways to read quantised checkpoints, or to quantise plain ones."""


@hookspec
def tgi_register_logits_processors() -> Iterable[LogitsProcessorSpec]:
    """Offer changes to logits before sampling."""


@hookspec(firstresult=True)
def tgi_resolve_model(model_id: str, revision: str | None, cache_dir: str | None) -> Path | None:
    """Fetch the model and return its folder or .gguf file, or None to leave it to the next plugin.

    Asked in the engine's process and in the server's, which reads the tokenizer.
    """


@hookspec(firstresult=True)
def tgi_create_tokenizer(model_path: Path, trust_remote_code: bool) -> Any | None:
    """Make a `tgi_core.tokenizer.tokenizer.Tokenizer` for this model, or None to leave it to the next plugin."""


@hookspec
def tgi_on_engine_started(info: EngineInfo) -> None:
    """The engine is ready for requests."""


@hookspec
def tgi_on_step_finished(stats: StepStats) -> None:
    """A step has ended; called between steps, so be quick."""


@hookspec
def tgi_on_request_finished(request_id: int, finish_reason: str, prompt_tokens: int, generated_tokens: int) -> None:
    """A request has ended.

    `finish_reason` is one of `tgi_core.request.FINISH_REASONS`; "abort" also where the caller found a stop string.
    """
