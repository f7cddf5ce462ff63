"""The largest step that may come, taken once before there are requests, so that the KV cache gets what it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeGuard

import numpy as np
import torch

from tgi_core.attention.base import AttentionBackend, EncoderInput, ForwardContext, Int32Array, SourceInput, StepInput
from tgi_core.config import ResolvedConfig
from tgi_core.device.backend import DeviceBackend
from tgi_core.distributed.group import Group
from tgi_core.engine.resolve import Facts
from tgi_core.errors import ConfigError
from tgi_core.models.base import CausalLM, LanguageModel
from tgi_core.runner.slots import positions


def takes_steps(model: LanguageModel, attention: AttentionBackend) -> TypeGuard[CausalLM]:
    """Whether a step of this model is what a batch of its requests takes; some keep a state of their own."""
    return isinstance(model, CausalLM) and bool(attention.specs) and not model.runner


@torch.inference_mode()
def left_by_largest_step(
    model: CausalLM, attention: AttentionBackend, backend: DeviceBackend, group: Group, facts: Facts,
    resolved: ResolvedConfig,
) -> Facts:  # fmt: skip
    """Take prompts as long as they may be beside as many decodes; every key lies in one block of cache.

    What the step took stays with the process, for those that follow.

    Returns:
        facts with what it took.

    Raises:
        ConfigError: it does not fit into memory.
    """
    tokens = resolved.max_batch_prefill_tokens
    with fits(f"a step of {tokens} tokens beside the weights; lower --max-batch-prefill-tokens"):
        attention.allocate(1)
        step = _step_with_source(resolved) if model.config.is_encoder_decoder else _step(resolved)
        context = ForwardContext(
            backend.upload(positions(step)), attention.prepare(step), _encoder_input(step, backend)
        )
        hidden = model(backend.upload(np.zeros(step.num_tokens, dtype=np.int64)), context)
        model.logits(hidden[: resolved.max_batch_size]).float().softmax(-1)
        backend.synchronize()
    left = group.least(backend.free_bytes())
    return replace(facts, step_bytes=facts.free_bytes - facts.weight_bytes - left)


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


def _step(resolved: ResolvedConfig) -> StepInput:
    decodes = min(resolved.max_batch_size, resolved.max_batch_prefill_tokens - 1) - 1
    prompt = min(resolved.max_batch_prefill_tokens - decodes, resolved.max_input_tokens)
    lengths = np.array([1] * decodes + [prompt], dtype=np.int32)
    lens = lengths.copy()
    lens[-1] = min(2 * prompt, resolved.max_total_tokens)  # half of it was there before
    return StepInput(_starts(lengths), lens, _tables(len(lens), int(lens[-1]), resolved))


def _step_with_source(resolved: ResolvedConfig) -> StepInput:
    one, source = np.ones(1, dtype=np.int32), np.array([resolved.max_batch_prefill_tokens], dtype=np.int32)
    places = _tables(1, int(source[0]), resolved)
    return StepInput(_starts(one), one, _tables(1, 1, resolved), SourceInput(_starts(source), source, places))


def _encoder_input(step: StepInput, backend: DeviceBackend) -> EncoderInput | None:
    if step.source is None:
        return None
    tokens = int(step.source.starts[-1])
    ids, at = np.zeros(tokens, dtype=np.int64), np.arange(tokens, dtype=np.int64)
    return EncoderInput(backend.upload(ids), backend.upload(at), (tokens,))


def _starts(lengths: Int32Array) -> Int32Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _tables(rows: int, tokens: int, resolved: ResolvedConfig) -> Int32Array:
    return np.zeros((rows, -(-tokens // resolved.block_size)), dtype=np.int32)
