"""The largest step that may come, taken once before there are requests, so that the KV cache gets what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeGuard

import numpy as np
import torch

from tgi_core.attention.base import AttentionBackend, EncoderInput, SourceInput, StepInput
from tgi_core.config import ResolvedConfig
from tgi_core.device.backend import DeviceBackend
from tgi_core.distributed.group import Group
from tgi_core.engine.resolve import Facts
from tgi_core.errors import ConfigError
from tgi_core.kernels import compiling
from tgi_core.models.base import CausalLM, LanguageModel
from tgi_core.runner.rehearsal import FIRST_TOKENS, rehearse, step_of

FEWEST_TOKENS = 512  #: of a step, below which a device is not busy


def takes_steps(model: LanguageModel, attention: AttentionBackend) -> TypeGuard[CausalLM]:
    """Whether a step of this model is what a batch of its requests takes; some keep a state of their own."""
    return isinstance(model, CausalLM) and bool(attention.specs) and not model.runner


def settle_by_trial(
    model: CausalLM,
    attention: AttentionBackend,
    backend: DeviceBackend,
    group: Group,
    facts: Facts,
    settle: Callable[[Facts], ResolvedConfig],
) -> ResolvedConfig:
    """Settings with what the largest step leaves.

    Where it does not fit, or leaves no room for a KV cache, steps get half the tokens, unless these were asked for.

    Raises:
        ConfigError: nothing fits; says what to lower.
    """
    resolved = settle(facts)
    while True:
        try:
            taken = _bytes_of_largest_step(model, attention, backend, group, resolved, facts)
            return settle(replace(facts, step_bytes=taken))
        except ConfigError:
            tokens = resolved.max_batch_prefill_tokens
            facts = replace(facts, step_tokens=tokens // 2)
            resolved = settle(facts)
            is_given = resolved.max_batch_prefill_tokens == tokens
            if is_given or tokens <= FEWEST_TOKENS or group.size > 1:  # ranks cannot tell each other that one failed
                raise
        backend.release()


@torch.inference_mode()
def _bytes_of_largest_step(
    model: CausalLM, attention: AttentionBackend, backend: DeviceBackend, group: Group, resolved: ResolvedConfig,
    facts: Facts,
) -> int:  # fmt: skip
    """Take prompts as long as they may be beside as many decodes; every key lies in one block of cache.

    What the step took stays with the process, for those that follow; what it took ahead, for its kernels, does not.

    Returns:
        what was taken, beside the planned weights.

    Raises:
        ConfigError: it does not fit into memory.
    """
    tokens = resolved.max_batch_prefill_tokens
    with fits(f"a step of {tokens} tokens beside the weights; lower --max-batch-prefill-tokens"):
        attention.allocate(1)
        steps = _steps_with_source if model.config.is_encoder_decoder else _steps
        step, first = steps(resolved)
        if attention.can_be_ahead:
            with compiling.ahead():  # so that the kernels of both are compiled side by side
                for each in (step, first):
                    _take(each, model, attention, backend)
            backend.release()
        _take(step, model, attention, backend)
        backend.synchronize()
    return facts.free_bytes - facts.weight_bytes - group.least(backend.free_bytes())


def _take(step: StepInput, model: CausalLM, attention: AttentionBackend, backend: DeviceBackend) -> None:
    """With what sampling takes."""
    rehearse(step, model, attention, backend, _encoder_input(step, backend)).float().softmax(-1)


@contextmanager
def fits(what: str) -> Iterator[None]:
    """Say what takes memory, where there is none.

    Raises:
        ConfigError: in place of PyTorch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"there is no memory for {what}, use a smaller model or free some memory ({error})"
        ) from error


def _steps(resolved: ResolvedConfig) -> tuple[StepInput, StepInput]:
    """The largest one, and the first one that an engine takes."""
    decodes = min(resolved.max_batch_size, resolved.max_batch_prefill_tokens - 1) - 1
    prompt = min(resolved.max_batch_prefill_tokens - decodes, resolved.max_input_tokens)
    seen = min(prompt, resolved.max_total_tokens - prompt)  # half of it was there before
    largest = step_of([1] * decodes + [prompt], [0] * decodes + [seen], resolved.block_size)
    return largest, step_of([min(FIRST_TOKENS, resolved.max_input_tokens)], [0], resolved.block_size)


def _steps_with_source(resolved: ResolvedConfig) -> tuple[StepInput, StepInput]:
    """The same, of an encoder-decoder."""
    return _source(resolved.max_batch_prefill_tokens, resolved), _source(FIRST_TOKENS, resolved)


def _source(tokens: int, resolved: ResolvedConfig) -> StepInput:
    """A decoder that begins, and its source."""
    source = step_of([tokens], [0], resolved.block_size)
    own = SourceInput(source.query_starts, source.context_lens, source.block_tables)
    return step_of([1], [0], resolved.block_size, own)


def _encoder_input(step: StepInput, backend: DeviceBackend) -> EncoderInput | None:
    if step.source is None:
        return None
    tokens = int(step.source.starts[-1])
    ids, at = np.zeros(tokens, dtype=np.int64), np.arange(tokens, dtype=np.int64)
    return EncoderInput(backend.upload(ids), backend.upload(at), (tokens,))
