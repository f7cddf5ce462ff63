"""The composition root: from a configuration to everything that an engine owns."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from tgi_core.attention.base import AttentionBackend
from tgi_core.config import EngineConfig, ResolvedConfig
from tgi_core.device.backend import DeviceBackend
from tgi_core.device.capabilities import MODEL_DTYPE, Capabilities
from tgi_core.distributed.group import ALONE, Group
from tgi_core.engine.model_files import find_model, make_tokenizer
from tgi_core.engine.place import Place
from tgi_core.engine.resolve import Facts, check_wishes, kv_dtype, kv_surplus, resolve, resolve_dtype
from tgi_core.engine.trial import fits, settle_by_trial, takes_steps
from tgi_core.errors import ConfigError, TokenizerError, UnsupportedModel
from tgi_core.kernels.ops import KernelQuery
from tgi_core.kernels.select import KernelChoice, select_kernels
from tgi_core.kvcache.manager import KVCacheManager
from tgi_core.layers.build import BuildContext
from tgi_core.layers.shard import shard_config
from tgi_core.model_config import ModelConfig, architecture, parse_model_config
from tgi_core.models.architecture import name_architecture
from tgi_core.models.base import LanguageModel
from tgi_core.models.select import select_model_or_fallback
from tgi_core.plugins.manager import Plugins
from tgi_core.plugins.specs import ModelSpec, QuantizationSpec
from tgi_core.plugins.specs import resolve as resolve_target
from tgi_core.quantization.base import Quantization
from tgi_core.quantization.select import select_quantization
from tgi_core.runner.base import Runner
from tgi_core.runner.slots import SlotTables
from tgi_core.sampling.processors.base import LogitsProcessor
from tgi_core.sampling.processors.select import extra_parameters, load_processors, offered_processors
from tgi_core.sampling.rules import token_rules
from tgi_core.sampling.sampler import Sampler
from tgi_core.sampling.state import SamplingContext, TokenCounts
from tgi_core.scheduler.finish import FinishRule
from tgi_core.scheduler.limits import Limits
from tgi_core.scheduler.scheduler import Scheduler
from tgi_core.stats import EngineInfo
from tgi_core.tokenizer.tokenizer_config import end_ids
from tgi_core.weights.reader import NoWeights, WeightReader, open_weights
from tgi_core.weights.source import ModelFiles

HEADS = ("lm_head.weight", "embed_out.weight")  #: what checkpoints call the output projection

log = logging.getLogger(__name__)

Progress = Callable[[str, float, str], None]  #: (phase, fraction of it, what is being done)


@dataclass(frozen=True)
class Parts:
    """What an engine is made of."""

    files: ModelFiles
    scheduler: Scheduler
    runner: Runner
    info: EngineInfo
    plugins: Plugins
    backend: DeviceBackend
    quantization: Quantization | None
    load_weights: Callable[[], None]  #: fills the model, again where quantization calls for it


def build(
    config: EngineConfig,
    place: Place,
    progress: Progress = lambda phase, fraction, detail: None,
    group: Group = ALONE,
    before_loading: Callable[[ModelFiles], None] = lambda files: None,
) -> Parts:
    """Load a model, or this rank's share of it, and everything around it.

    Args:
        before_loading: called when the model is known to be one that can be loaded, and before other ranks are met.

    Raises:
        TGIError: says what is wrong and what to do.
    """
    plugins, probe = place.plugins, place.probe
    backend = _make_backend(place.backend, group)
    check_wishes(config, backend.capabilities)
    files = find_model(
        plugins,
        config.model_id,
        revision=config.revision,
        cache_dir=config.cache_dir,
        progress=lambda fraction, detail: progress("download", fraction, detail),
        artifact=backend.artifact,
    )
    files = name_architecture(files)
    refused = backend.capabilities.refused_quantizations
    quantization = _quantization(select_quantization(plugins, config.quantize, files.config, refused), files)
    reader = open_weights(files) if files.weights else NoWeights()
    if quantization:
        reader = quantization.open(reader)
    spec, fallback = select_model_or_fallback(plugins, architecture(files.config), probe.kind, probe.own_models)
    model_config = _fallback_config(config, files, group) if fallback else _model_config(config, files, reader)
    dtype, _ = resolve_dtype(config, model_config, backend.capabilities)
    query = replace(
        kernel_query(config, model_config, probe.kind, dtype, backend.capabilities),
        torch_device=str(backend.torch_device),
    )
    kernels, choices = select_kernels(plugins, query, config.kernels, reference_only=config.disable_custom_kernels)
    attention: AttentionBackend = kernels.attention(query)
    free_bytes = backend.free_bytes()
    linear = quantization.linear(kernels) if quantization else kernels.linear
    context = BuildContext(
        kernels,
        linear,
        attention,
        getattr(torch, dtype),
        backend.torch_device,
        backend.copy_weight,
        head=quantization.head(kernels) if quantization else None,
        group=group,
        folder=files.folder,
        trust_remote_code=config.trust_remote_code,
        devices=len(probe.products),
        wishes=config,
    )
    model = _make_model(spec, shard_config(model_config, group), context)
    _check_cache(config, attention)
    fallback = fallback and _warn_of_fallback(fallback, model)
    capabilities = model.narrow(backend.capabilities)
    before_loading(files)
    group.join(backend.collectives, backend.torch_device, in_order=config.deterministic)
    chosen_norms = {"add_rms_norm", "add_layer_norm"} & {*config.kernels}
    group.sum_with(backend.sums, norms=not chosen_norms and not config.disable_custom_kernels)
    facts = Facts(
        model_id=files.model_id,
        device=probe.kind,
        device_reason=place.reason,
        free_bytes=group.least(free_bytes),
        weight_bytes=_weight_bytes(reader, dtype, model_config, group, quantization),
        token_bytes=_token_bytes(attention, query.block_size) + model.token_bytes,
        sequence_bytes=model.sequence_bytes,
        counts_bytes=TokenCounts.sequence_bytes(model_config.vocab_size) if capabilities.tells_memory else 0,
        ranks=group.size,
    )
    load_weights = partial(model.load_weights, reader, lambda fraction: progress("weights", fraction, files.model_id))
    settle = partial(resolve, config, model_config, capabilities, chosen=model.reasons)
    resolved = _fill(model, context, backend, load_weights, facts, settle)
    eos = end_ids(files.generation_config, files.config) or _tokenizer_end_ids(plugins, config, files)
    scheduler = _scheduler(resolved, model_config, capabilities, eos)
    processors = offered_processors(plugins)
    rules = token_rules((files.generation_config, files.config), eos, model_config.vocab_size)
    sampling = partial(SamplingContext, rules=rules, kernels=kernels, group=group)
    runner = _runner(config, resolved, model, attention, backend, sampling, load_processors(processors))
    info = _info(config, resolved, model_config, backend, choices, fallback, extra_parameters(processors))
    return Parts(files, scheduler, runner, info, plugins, backend, quantization, load_weights)


def _make_backend(kind: type[DeviceBackend], group: Group) -> DeviceBackend:
    """The device of this rank."""
    if group.size == 1:
        return kind()
    for name, value in kind.collectives_environment.items():
        os.environ.setdefault(name, value)
    return kind(group.rank, group.size)


def _warn_of_fallback(why: str, model: LanguageModel) -> str:
    note = f"{why}; {model.note}"
    log.warning("%s", note)
    return note


def _quantization(spec: QuantizationSpec | None, files: ModelFiles) -> Quantization | None:
    if spec is None:
        return None
    made: Quantization = resolve_target(spec.target)(files.config.get("quantization_config") or {})
    return made


def _make_model(spec: ModelSpec, config: ModelConfig, context: BuildContext) -> LanguageModel:
    """The model without its weights.

    Raises:
        UnsupportedModel: its config.json has something of a kind that its family does not expect.
    """
    try:
        model: LanguageModel = resolve_target(spec.target)(config, context)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        log.debug("%s cannot be made", config.architecture, exc_info=True)
        raise UnsupportedModel(
            f"{config.architecture} cannot be made of this config.json ({type(error).__name__}: {error}); "
            "compare it with the original one"
        ) from error
    return model


def kernel_query(
    config: EngineConfig, model: ModelConfig, device: str, dtype: str, capabilities: Capabilities
) -> KernelQuery:
    """What this model asks of kernels on a device."""
    return KernelQuery(
        device=device,
        dtype=dtype,
        head_size=model.head_size,
        block_size=capabilities.block_sizes[0],
        sliding_window=any(model.sliding_windows),
        soft_cap=bool(model.raw.get("attn_logit_softcapping")),
        encoder_decoder=model.is_encoder_decoder,
        relative_bias=model.relative_positions,
        deterministic=config.deterministic,
        kv_dtype=kv_dtype(config, capabilities),
    )


def _model_config(config: EngineConfig, files: ModelFiles, reader: WeightReader) -> ModelConfig:
    """The model's shape, with a person's rope wishes.

    The head is the embedding exactly where the checkpoint has none of its own, whatever its config says: that is what
    transformers makes of it too.
    """
    raw = dict(files.config)
    if config.rope_scaling or config.rope_factor:
        own, factor = parse_model_config(raw), config.rope_factor or 1.0
        raw["rope_scaling"] = {
            "rope_type": config.rope_scaling or "linear",
            "factor": factor,
            "rope_theta": own.rotary.theta,
            "original_max_position_embeddings": own.max_positions,
        }
        raw["max_position_embeddings"] = int(own.max_positions * factor)
    parsed = parse_model_config(raw, files.generation_config)
    if not reader.names:
        return parsed
    return replace(parsed, tie_word_embeddings=not any(name.endswith(HEADS) for name in reader.names))


def _fallback_config(config: EngineConfig, files: ModelFiles, group: Group) -> ModelConfig:
    """The model's shape as transformers reads it."""
    from tgi_core.models.fallback_config import parse_fallback_config, refuse_quantised

    if group.size > 1:
        raise ConfigError(
            f"--num-shard {group.size} is not supported for models that transformers runs; leave it out: "
            "transformers spreads the model over all devices that it sees"
        )
    if config.deterministic:
        raise ConfigError(
            "--deterministic: transformers runs this model, and its results may depend on the rows beside one; "
            "leave it out, or serve a model of a family in `tgi models`"
        )
    if config.rope_scaling or config.rope_factor:
        raise ConfigError(
            "--rope-scaling: transformers runs this model and has its own way; write `rope_parameters` into config.json"
        )
    if config.quantize:
        refuse_quantised(config.quantize)
    return parse_fallback_config(
        files.config,
        files.folder,
        trust_remote_code=config.trust_remote_code,
        generation_config=files.generation_config,
        max_total_tokens=config.max_total_tokens,
    )


def _check_cache(config: EngineConfig, attention: AttentionBackend) -> None:
    """Refuse a format for keys and values that a model keeps itself.

    Raises:
        ConfigError: says so.
    """
    if config.kv_cache_dtype not in (None, MODEL_DTYPE) and not attention.specs:
        raise ConfigError(
            f"--kv-cache-dtype {config.kv_cache_dtype}: this model does not keep its state in the engine's KV cache, "
            "but in its own dtype; leave it out"
        )


def _fill(
    model: LanguageModel,
    context: BuildContext,
    backend: DeviceBackend,
    load_weights: Callable[[], None],
    facts: Facts,
    settle: Callable[[Facts], ResolvedConfig],
) -> ResolvedConfig:
    """Load the weights, and take memory for the KV cache, whose size is settled anew where a step can be measured."""
    resolved, attention = settle(facts), context.attention  # refuses before anything heavy
    with fits("the weights; divide the model with --num-shard, keep it in fewer bits with --quantize"):
        load_weights()
        backend.synchronize()
    backend.prepare_model(model.eval())
    if backend.capabilities.tells_memory and takes_steps(model, attention):
        resolved = settle_by_trial(model, attention, backend, context.group, facts, settle)
    if attention.specs:
        attention.allocate(resolved.num_blocks)
    model.allocate(resolved.max_batch_size, resolved.max_total_tokens)  # what it keeps itself
    return resolved


def _token_bytes(attention: AttentionBackend, block_size: int) -> int:
    """Of KV cache that core allocates: none where a model's layers ask for none."""
    return attention.block_bytes() // block_size if attention.specs else 0


def _weight_bytes(
    reader: WeightReader, dtype: str, model: ModelConfig, group: Group, quantization: Quantization | None
) -> int:
    """Of one rank's share.  Every rank holds all of vectors and of what has a row for each token."""
    plain = 8.0 * getattr(torch, dtype).itemsize
    layers = (quantization and quantization.layer_bits) or plain
    head = (quantization and quantization.head_bits) or plain
    bits = 0.0
    for name in reader.names:
        shape = reader.shape(name)
        elements = torch.Size(shape).numel()
        if len(shape) < 2:
            bits += elements * plain
        elif shape[0] == model.vocab_size:
            bits += elements * (head if model.tie_word_embeddings or "head" in name else plain)
        else:
            bits += elements * layers / group.size
    return int(bits / 8)


def _tokenizer_end_ids(plugins: Plugins, config: EngineConfig, files: ModelFiles) -> tuple[int, ...]:
    """The tokenizer's EOS, for models whose configuration names none."""
    try:
        return make_tokenizer(plugins, files, trust_remote_code=config.trust_remote_code).eos_token_ids
    except TokenizerError:
        return ()  # whoever needs the tokenizer will say so


def _scheduler(
    resolved: ResolvedConfig, model: ModelConfig, capabilities: Capabilities, eos_token_ids: tuple[int, ...]
) -> Scheduler:
    limits = Limits(
        max_input_tokens=resolved.max_input_tokens,
        max_total_tokens=resolved.max_total_tokens,
        max_batch_prefill_tokens=resolved.max_batch_prefill_tokens,
        max_batch_size=resolved.max_batch_size,
        vocab_size=model.vocab_size,
        max_output_tokens=resolved.max_output_tokens,
        refused_parameters=resolved.refused_parameters,
        max_top_k=resolved.max_top_k,
    )
    kv = KVCacheManager(resolved.num_blocks, resolved.block_size, prefix_caching=resolved.prefix_caching)
    finish = FinishRule(frozenset(eos_token_ids))
    return Scheduler(limits, capabilities, kv, finish, model.decoder_start_ids)


def _runner(
    config: EngineConfig,
    resolved: ResolvedConfig,
    model: LanguageModel,
    attention: AttentionBackend,
    backend: DeviceBackend,
    sampling: Callable[..., SamplingContext],
    processors: Sequence[type[LogitsProcessor]],
) -> Runner:
    device, slots, vocab = backend.sampling_device, resolved.max_batch_size, model.config.vocab_size
    most_tokens = resolved.max_total_tokens + kv_surplus(model.config, resolved.block_size)
    tables = SlotTables(slots, -(-most_tokens // resolved.block_size), backend)
    context = sampling(
        vocab_size=vocab,
        device=device,
        upload=backend.upload_for_sampling,
        counts=TokenCounts(slots, vocab, device, backend.upload_for_sampling),
        last_tokens=tables.last_tokens,
        watermark_gamma=config.watermark_gamma,
        watermark_delta=config.watermark_delta,
        deterministic=config.deterministic,
    )
    target = model.runner or backend.runner
    runner: Runner = resolve_target(target)(model, attention, Sampler(context, processors), tables, backend)
    return runner


def _info(
    config: EngineConfig,
    resolved: ResolvedConfig,
    model: ModelConfig,
    backend: DeviceBackend,
    choices: dict[str, KernelChoice],
    fallback: str,
    extra: dict[str, str],
) -> EngineInfo:
    shared = set(EngineInfo.__struct_fields__) & set(ResolvedConfig.__struct_fields__)
    return EngineInfo(
        **{name: getattr(resolved, name) for name in shared},
        model_type=model.model_type,
        architecture=model.architecture,
        product=backend.product,
        vocab_size=model.vocab_size,
        kernels={op: choice.spec.name for op, choice in choices.items()},
        load_s=0.0,
        fallback=fallback,
        custom_kernels=not config.disable_custom_kernels,
        deterministic=config.deterministic,
        extra_parameters=extra,
        decoder_start_ids=list(model.decoder_start_ids),
    )
