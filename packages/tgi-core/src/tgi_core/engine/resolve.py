"""From wishes to settings: a pure function, with the reason of every automatic choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tgi_core.config import EngineConfig, ResolvedConfig
from tgi_core.device.capabilities import MODEL_DTYPE, ONE_BLOCK_PER_SEQUENCE, Capabilities
from tgi_core.errors import ConfigError
from tgi_core.model_config import ModelConfig
from tgi_core.stats import Reason

WEIGHTS_SHARE = 2  #: on the host, KV cache takes at most this times the weights unless asked for more
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is measured rather than wished."""

    model_id: str
    device: str
    device_reason: str
    free_bytes: int  #: on the device, before weights are loaded
    weight_bytes: int  #: of the loaded model
    token_bytes: int  #: of KV cache, over all layers; 0 for models that keep a state instead
    sequence_bytes: int = 0  #: of cache that a sequence takes however long it is
    counts_bytes: int = 0  #: of a sequence, where the device counts tokens for penalties in memory that is planned here
    step_bytes: int = 0  #: that the largest step takes, where it was taken; and what weights take more than planned
    step_tokens: int | None = None  #: of prompts, that fit into a step
    ranks: int = 1  #: that hold the model; bytes are those of the one that has least


COUNTS_SHARE, FEWEST_COUNTED = 16, 64  #: of memory that counts may take; sequences that always get them


@dataclass
class _Choices:
    """Collects reasons while settings are chosen."""

    reasons: list[Reason] = field(default_factory=list)

    def take(self, setting: str, wish: object, automatic: object, why: str) -> None:
        """Note that a setting was chosen automatically, if nobody wished."""
        if wish is None:
            self.reasons.append(Reason(setting, str(automatic), why))


def resolve_dtype(config: EngineConfig, model: ModelConfig, capabilities: Capabilities) -> tuple[str, str]:
    """The dtype of weights and activations, and why.

    Raises:
        ConfigError: the device cannot compute in the wished one.
    """
    able = capabilities.dtypes
    if config.dtype is not None:
        if config.dtype not in able:
            raise ConfigError(f"--dtype {config.dtype}: this device computes in {', '.join(able)}")
        return config.dtype, "--dtype asked for it"
    stored = model.parameters_dtype
    if stored in able and able.index(stored) == 0:
        return stored, "the checkpoint's own, and the device's best"
    if stored == "float32" and stored in able:
        return stored, "the checkpoint's own"
    return able[0], f"the device's best; the checkpoint is {stored}"


def kv_dtype(config: EngineConfig, capabilities: Capabilities) -> str:
    """The format of keys and values, by its name in `Capabilities.kv_dtypes`."""
    return config.kv_cache_dtype or capabilities.kv_dtypes[0]


def check_wishes(config: EngineConfig, capabilities: Capabilities) -> None:
    """Refuse what the device cannot do, before anything heavy.

    Raises:
        ConfigError: names the option, what is supported, and what to do.
    """
    _check_kv_dtype(config.kv_cache_dtype, capabilities)
    if config.prefix_caching and not capabilities.prefix_caching:
        raise ConfigError("this device cannot reuse cached prefixes; leave prefix caching out")
    for name in (
        "max_input_tokens",
        "max_total_tokens",
        "max_batch_prefill_tokens",
        "max_batch_total_tokens",
        "max_batch_size",
    ):
        value = getattr(config, name)
        least = 2 if name == "max_total_tokens" else 1  # one of the prompt and one of the output
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}. Given: {value}")
    if not 0 < config.memory_fraction <= 1:
        raise ConfigError(f"the memory fraction must be above 0 and at most 1. Given: {config.memory_fraction}")


def _check_kv_dtype(wished: str | None, capabilities: Capabilities) -> None:
    able = capabilities.kv_dtypes
    if wished is None or wished in able:
        return
    why = capabilities.refused_kv_dtypes.get(wished)
    if why is None:
        why = "this device keeps the model's dtype; leave it out"
        if len(able) > 1:
            why = f"there is no such format here; there are {', '.join(able)}"
    raise ConfigError(f"--kv-cache-dtype {wished}: {why}")


def resolve(
    config: EngineConfig,
    model: ModelConfig,
    capabilities: Capabilities,
    facts: Facts,
    chosen: Sequence[Reason] = (),
) -> ResolvedConfig:
    """Every setting of the engine.

    Args:
        chosen: what the model's implementation has chosen, and why.

    Raises:
        ConfigError: wishes contradict each other or do not fit into memory.
    """
    check_wishes(config, capabilities)
    choices = _Choices([Reason("device", facts.device, facts.device_reason), *chosen])
    if facts.ranks > 1:
        choices.take("num_shard", config.num_shard, facts.ranks, "all devices, as --sharded asked for")
    dtype, why = resolve_dtype(config, model, capabilities)
    kept = kv_dtype(config, capabilities)
    choices.take("dtype", config.dtype, dtype, why)
    batch_size = _batch_size(config, capabilities, facts, choices)
    batch_size = _batch_size_that_fits(config, capabilities, facts, batch_size, choices)
    longest = _longest(config, model, capabilities)
    one_block = capabilities.block_sizes[0] == ONE_BLOCK_PER_SEQUENCE
    surplus = kv_surplus(model, capabilities.block_sizes[0])
    fits = _longest_that_fits(config, capabilities, facts, batch_size, longest) if one_block else None
    capacity = _capacity(config, capabilities, facts, batch_size, (fits or longest) + surplus, choices)
    if one_block and model.is_encoder_decoder:
        raise ConfigError(
            "this device holds a sequence in one block of KV cache, which has no place for an encoder's keys; "
            "serve encoder-decoders on another device"
        )
    total = _max_total(config, longest, fits or capacity - surplus, choices)
    max_input = _max_input(config, model, capabilities, total, choices)
    block_size = total if one_block else capabilities.block_sizes[0]
    num_blocks = batch_size if one_block else capacity // block_size
    prefill = config.max_batch_prefill_tokens or _prefill_tokens(model, capabilities, facts, max_input, choices)
    return ResolvedConfig(
        model_id=facts.model_id,
        device=facts.device,
        dtype=dtype,
        kv_cache_dtype=dtype if kept == MODEL_DTYPE else kept,
        max_input_tokens=max_input,
        max_total_tokens=total,
        max_output_tokens=_max_output(model),
        max_batch_prefill_tokens=prefill,
        max_batch_total_tokens=num_blocks * block_size,
        max_batch_size=batch_size,
        block_size=block_size,
        num_blocks=num_blocks,
        prefix_caching=_prefix_caching(config, model, capabilities, choices),
        num_shard=facts.ranks,
        reasons=choices.reasons,
        refused_parameters=dict(capabilities.refused_parameters),
        max_top_k=capabilities.max_top_k,
    )


def _batch_size(config: EngineConfig, capabilities: Capabilities, facts: Facts, choices: _Choices) -> int:
    most = capabilities.max_sequences
    if most is not None:
        if config.max_batch_size is not None and config.max_batch_size > most:
            raise ConfigError(f"--max-batch-size {config.max_batch_size}: the compiled model has {most} slots")
        choices.take("max_batch_size", config.max_batch_size, most, "slots of the compiled model")
        return config.max_batch_size or most
    size, why = capabilities.batch_size, "more do not pay off on this device"
    room = _room(config, capabilities, facts)
    while size > FEWEST_COUNTED and size * facts.counts_bytes * COUNTS_SHARE > room:
        size, why = size // 2, "to count the tokens of more would take too much memory"
    choices.take("max_batch_size", config.max_batch_size, size, why)
    return config.max_batch_size or size


def _batch_size_that_fits(
    config: EngineConfig, capabilities: Capabilities, facts: Facts, batch_size: int, choices: _Choices
) -> int:
    """As many sequences as have room for their state, beside as much for tokens."""
    if not facts.sequence_bytes:
        return batch_size
    fits = _room(config, capabilities, facts) // facts.sequence_bytes // (2 if facts.token_bytes else 1)
    if fits < (config.max_batch_size or 1):
        raise ConfigError(
            f"there is memory for {max(fits, 0)} sequences of {facts.sequence_bytes / 2**20:.1f} MiB each; "
            "lower --max-batch-size, use a smaller model or free some memory"
        )
    if fits < batch_size:
        choices.take("max_batch_size", config.max_batch_size, fits, "sequences whose state fits into free memory")
    return min(batch_size, fits)


def _room(config: EngineConfig, capabilities: Capabilities, facts: Facts) -> int:
    """Bytes for KV cache, and for what sequences take however long they are."""
    left = facts.free_bytes - facts.weight_bytes - facts.step_bytes
    return int(left * capabilities.memory_fraction * config.memory_fraction)


def _room_for_tokens(config: EngineConfig, capabilities: Capabilities, facts: Facts, batch_size: int) -> int:
    """Bytes of that for KV cache."""
    return _room(config, capabilities, facts) - batch_size * (facts.sequence_bytes + facts.counts_bytes)


def kv_surplus(model: ModelConfig, block_size: int) -> int:
    """Tokens of KV cache that a sequence may take beyond its prompt and output.

    The decoder of an encoder-decoder has start tokens, and begins in a new block behind the source.
    """
    return block_size + len(model.decoder_start_ids) if model.is_encoder_decoder else 0


def _longest(config: EngineConfig, model: ModelConfig, capabilities: Capabilities) -> int:
    """The longest sequence that model and device allow; encoder and decoder count positions for themselves."""
    known = 2 * model.max_positions if model.is_encoder_decoder else model.max_positions
    longest = min(known, capabilities.max_len or known)
    if config.max_total_tokens is not None and capabilities.max_len and config.max_total_tokens > capabilities.max_len:
        raise ConfigError(
            f"--max-total-tokens {config.max_total_tokens}: the compiled model holds {capabilities.max_len} tokens of "
            "a sequence; ask for at most that many, or compile it for more"
        )
    if config.max_total_tokens is not None and config.max_total_tokens > longest and not model.relative_positions:
        raise ConfigError(
            f"--max-total-tokens {config.max_total_tokens}: the model knows {longest} positions; "
            "ask for at most that many, or stretch them with --rope-scaling"
        )
    return config.max_total_tokens or longest


def _longest_that_fits(
    config: EngineConfig, capabilities: Capabilities, facts: Facts, batch_size: int, longest: int
) -> int:
    """The longest sequence that every slot has memory for."""
    room = _room_for_tokens(config, capabilities, facts, batch_size)
    fits = room // (batch_size * facts.token_bytes) if facts.token_bytes else longest
    if fits >= longest:
        return longest
    if config.max_total_tokens is not None or fits < 2:
        raise ConfigError(
            f"{batch_size} sequences of {longest} tokens need more memory than there is: {room / 2**30:.1f} GiB hold "
            f"{max(fits, 0)} tokens of each; lower --max-total-tokens or --max-batch-size"
        )
    return fits


def _prefix_caching(config: EngineConfig, model: ModelConfig, capabilities: Capabilities, choices: _Choices) -> bool:
    if not model.is_encoder_decoder:
        return capabilities.prefix_caching if config.prefix_caching is None else config.prefix_caching
    why = "every token of an encoder-decoder depends on the whole prompt"
    if config.prefix_caching:
        raise ConfigError(f"prefix caching: {why}, so that no prefix can be reused; leave it out")
    choices.take("prefix_caching", config.prefix_caching, False, why)
    return False


def _capacity(
    config: EngineConfig, capabilities: Capabilities, facts: Facts, batch_size: int, longest: int, choices: _Choices
) -> int:
    """Tokens of KV cache."""
    block = capabilities.block_sizes[0]
    if block == ONE_BLOCK_PER_SEQUENCE:
        return batch_size * longest
    if not facts.token_bytes:
        return -(-(config.max_batch_total_tokens or batch_size * longest) // block) * block
    room = _room_for_tokens(config, capabilities, facts, batch_size)
    fits = room // (facts.token_bytes * block) * block
    if config.max_batch_total_tokens is not None:
        if config.max_batch_total_tokens > fits:
            raise ConfigError(
                f"--max-batch-total-tokens {config.max_batch_total_tokens} needs more memory than there is: "
                f"{fits} tokens fit into {room / 2**30:.1f} GiB"
            )
        return -(-config.max_batch_total_tokens // block) * block
    useful = batch_size * -(-longest // block) * block
    why = "tokens that all sequences together can hold"
    if useful > fits:
        why = f"tokens that fit into {room / 2**30:.1f} GiB of {facts.free_bytes / 2**30:.1f} GiB that were free"
    tokens = min(fits, useful)
    if capabilities.host_memory:
        enough = -(-max(WEIGHTS_SHARE * facts.weight_bytes // facts.token_bytes, longest) // block) * block
        if enough < tokens:
            tokens, why = enough, f"{WEIGHTS_SHARE} times the weights' memory, so that the host keeps room for others"
    if tokens < 2 * block:
        raise ConfigError(
            f"there is no memory for a KV cache: {facts.free_bytes / 2**30:.1f} GiB are free and the weights take "
            f"{facts.weight_bytes / 2**30:.1f} GiB; use a smaller model or free some memory"
        )
    choices.take("max_batch_total_tokens", None, tokens, why)
    return tokens


def _max_total(config: EngineConfig, longest: int, capacity: int, choices: _Choices) -> int:
    if config.max_total_tokens is not None and config.max_total_tokens > capacity:
        raise ConfigError(
            f"`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {config.max_total_tokens} and {capacity}"
        )
    why = "all positions that the model knows" if longest <= capacity else "the size of the KV cache"
    choices.take("max_total_tokens", config.max_total_tokens, min(longest, capacity), why)
    return min(longest, capacity)


def _max_input(
    config: EngineConfig, model: ModelConfig, capabilities: Capabilities, total: int, choices: _Choices
) -> int:
    known = model.max_positions if model.is_encoder_decoder else total
    if config.max_input_tokens is not None:
        if config.max_input_tokens > known and not model.relative_positions:
            raise ConfigError(f"--max-input-tokens {config.max_input_tokens}: the encoder knows {known} positions")
        if config.max_input_tokens >= total:
            raise ConfigError(f"`max_input_tokens`({config.max_input_tokens}) must be < `max_total_tokens`({total})")
        most = capabilities.max_prompt_len
        if most is not None and config.max_input_tokens > most:
            raise ConfigError(
                f"--max-input-tokens {config.max_input_tokens}: the compiled model reads prompts of {most} tokens; "
                "ask for at most that many, or compile it for more"
            )
        return config.max_input_tokens
    longest = min(total - 1, known, capabilities.max_prompt_len or total - 1)
    why = "max_total_tokens less one token of output"
    if longest < total - 1:
        why = "positions of the encoder" if longest == known else "the longest prompt that the compiled model reads"
    choices.take("max_input_tokens", None, longest, why)
    return longest


def _max_output(model: ModelConfig) -> int | None:
    """The KV of the last token is never needed, nor its position."""
    if not model.is_encoder_decoder or model.relative_positions:
        return None
    return model.max_positions - len(model.decoder_start_ids) + 1


def _prefill_tokens(
    model: ModelConfig, capabilities: Capabilities, facts: Facts, max_input: int, choices: _Choices
) -> int:
    if capabilities.chunked_prefill and not model.is_encoder_decoder:
        tokens, why = capabilities.prefill_tokens, "keeps this device busy"
        if facts.step_tokens is not None:
            tokens, why = min(tokens, facts.step_tokens), "a step of twice as many leaves too little memory"
        choices.take("max_batch_prefill_tokens", None, tokens, why)
        return tokens
    tokens = max(max_input, capabilities.prefill_tokens)
    why = "an encoder takes whole prompts" if model.is_encoder_decoder else "this device takes whole prompts"
    choices.take("max_batch_prefill_tokens", None, tokens, why)
    return tokens
