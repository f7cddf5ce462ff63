"""From wishes to settings, with reasons."""

from dataclasses import replace

import pytest

from tgi_core.config import EngineConfig
from tgi_core.device.capabilities import Capabilities
from tgi_core.engine.resolve import Facts, resolve, resolve_dtype
from tgi_core.errors import ConfigError
from tgi_core.model_config import parse_model_config
from tgi_core.stats import Reason

MODEL = parse_model_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "dtype": "bfloat16",
    }
)
GPU = Capabilities(block_sizes=(16,), dtypes=("bfloat16", "float16", "float32"))
HOST = Capabilities(block_sizes=(32,), dtypes=("bfloat16", "float32"), host_memory=True, batch_size=8)
STATIC = Capabilities(
    block_sizes=(0,), max_sequences=4, max_len=512, max_prompt_len=256, chunked_prefill=False, prefix_caching=False
)


SIZES = {"vocab_size": 100, "d_model": 64, "num_layers": 2, "num_heads": 4}
T5 = parse_model_config({**SIZES, "architectures": ["T5ForConditionalGeneration"], "model_type": "t5"})
BART = parse_model_config(
    {
        **SIZES,
        "architectures": ["BartForConditionalGeneration"],
        "is_encoder_decoder": True,
        "decoder_start_token_id": 2,
        "max_position_embeddings": 256,
    }
)


def run(capabilities=GPU, free=10**9, weights=10**8, model=MODEL, **wishes):
    facts = Facts(model_id="m", device="d", device_reason="r", free_bytes=free, weight_bytes=weights, token_bytes=1000)
    return resolve(EngineConfig(**wishes), model, capabilities, facts)


def test_zero_flags_give_everything_the_model_and_the_memory_allow():
    resolved = run()
    assert (resolved.max_total_tokens, resolved.max_input_tokens) == (1024, 1023)
    assert resolved.max_batch_size == 256
    assert resolved.num_blocks * 16 == resolved.max_batch_total_tokens == 256 * 1024
    assert resolved.dtype == "bfloat16"
    assert resolved.prefix_caching
    settings = [reason.setting for reason in resolved.reasons]
    assert settings == [
        "device", "dtype", "max_batch_size", "max_batch_total_tokens", "max_total_tokens", "max_input_tokens",
        "max_batch_prefill_tokens",
    ]  # fmt: skip
    assert all(reason.why for reason in resolved.reasons)


def test_counts_of_tokens_have_their_memory_and_take_no_large_share_of_it():
    many = replace(GPU, batch_size=512, memory_fraction=1.0)
    facts = Facts(
        model_id="m", device="d", device_reason="r", free_bytes=10**9, weight_bytes=0, token_bytes=10_000,
        counts_bytes=100_000,
    )  # fmt: skip

    def found(free, **wishes):
        resolved = resolve(EngineConfig(**wishes), MODEL, many, replace(facts, free_bytes=free))
        (why,) = [reason.why for reason in resolved.reasons if reason.setting == "max_batch_size"] or [""]
        return resolved.max_batch_size, resolved.max_batch_total_tokens, why

    pays = "more do not pay off on this device"
    assert found(2 * 10**9) == (512, (2 * 10**9 - 512 * 10**5) // 160_000 * 16, pays)
    assert found(512 * 10**5 * 16)[0] == 512
    size, tokens, why = found(512 * 10**5 * 16 - 1)
    assert (size, why) == (256, "to count the tokens of more would take too much memory")
    assert tokens == (512 * 10**5 * 16 - 1 - 256 * 10**5) // 160_000 * 16
    assert found(10**8)[0] == 64
    assert found(10**8, max_batch_size=300)[::2] == (300, "")


def test_keys_and_values_are_kept_in_what_was_asked_for():
    able = replace(GPU, kv_dtypes=("model", "fp8_e4m3fn", "fp8_e5m2"))
    assert run(able).kv_cache_dtype == run(able, kv_cache_dtype="model").kv_cache_dtype == "bfloat16"
    assert run(able, kv_cache_dtype="fp8_e5m2").kv_cache_dtype == "fp8_e5m2"
    with pytest.raises(ConfigError, match=r"fp8: there is no such format here; there are model, fp8_e4m3fn, fp8_e5m2"):
        run(able, kv_cache_dtype="fp8")
    with pytest.raises(ConfigError, match=r"keeps the model's dtype; leave it out"):
        run(GPU, kv_cache_dtype="fp8_e5m2")
    with pytest.raises(ConfigError, match=r"--kv-cache-dtype fp8_e4m3fn: is too old"):
        run(able.without_kv_dtypes({"fp8_e4m3fn": "is too old"}), kv_cache_dtype="fp8_e4m3fn")


def test_a_wish_is_followed_and_needs_no_reason():
    resolved = run(max_total_tokens=512, max_input_tokens=100, max_batch_size=3, max_batch_prefill_tokens=64)
    assert (resolved.max_total_tokens, resolved.max_input_tokens, resolved.max_batch_size) == (512, 100, 3)
    assert resolved.max_batch_prefill_tokens == 64
    assert [reason.setting for reason in resolved.reasons] == ["device", "dtype", "max_batch_total_tokens"]


def test_memory_limits_the_cache_and_the_longest_sequence():
    resolved = run(free=10**8 + 600_000)
    assert resolved.max_batch_total_tokens == 528
    assert resolved.max_total_tokens == 528


def test_on_the_host_the_cache_takes_twice_the_weights_but_one_full_sequence_at_least():
    assert run(HOST, weights=10**6).max_batch_total_tokens == 2016
    assert run(HOST, weights=10**5).max_batch_total_tokens == 1024


def test_a_compiled_device_has_one_block_per_slot():
    resolved = run(STATIC)
    assert (resolved.num_blocks, resolved.block_size, resolved.max_batch_size) == (4, 512, 4)
    assert (resolved.max_total_tokens, resolved.max_input_tokens) == (512, 256)
    why = {reason.setting: reason.why for reason in resolved.reasons}
    assert why["max_input_tokens"] == "the longest prompt that the compiled model reads"
    assert not resolved.prefix_caching


def test_slots_are_as_long_as_there_is_memory_for_all_of_them():
    free = 10**8 + 10**6
    resolved = run(STATIC, free=free)
    assert resolved.max_total_tokens == resolved.block_size == 225  # 0.9 of 1 MB, in 4 slots of 1000 bytes a token
    assert resolved.num_blocks == 4
    with pytest.raises(ConfigError, match="hold 225 tokens of each; lower --max-total-tokens or --max-batch-size"):
        run(STATIC, free=free, max_total_tokens=512)
    with pytest.raises(ConfigError, match="need more memory than there is"):
        run(STATIC, free=10**8)


def test_encoder_and_decoder_have_positions_of_their_own():
    resolved = run(model=BART)
    assert (resolved.max_input_tokens, resolved.max_total_tokens, resolved.max_output_tokens) == (256, 512, 256)
    with pytest.raises(ConfigError, match="the encoder knows 256 positions"):
        run(model=BART, max_input_tokens=257)
    with pytest.raises(ConfigError, match="the model knows 512 positions"):
        run(model=BART, max_total_tokens=513)


def test_relative_positions_bound_nothing():
    resolved = run(model=T5)
    assert (resolved.max_input_tokens, resolved.max_total_tokens, resolved.max_output_tokens) == (512, 1024, None)
    resolved = run(model=T5, max_input_tokens=3000, max_total_tokens=4000)
    assert (resolved.max_input_tokens, resolved.max_total_tokens) == (3000, 4000)


def test_whole_sources_are_taken_and_no_prefix_is_cached():
    resolved = run(Capabilities(prefill_tokens=128), model=T5)
    assert (resolved.max_batch_prefill_tokens, resolved.prefix_caching) == (512, False)
    assert {"prefix_caching", "max_batch_prefill_tokens"} <= {reason.setting for reason in resolved.reasons}
    with pytest.raises(ConfigError, match="every token of an encoder-decoder depends on the whole prompt"):
        run(model=T5, prefix_caching=True)


def test_source_and_output_fit_into_the_cache_in_blocks_of_their_own():
    resolved = run(model=T5, free=10**8 + 600_000)
    assert resolved.max_batch_total_tokens == 528
    assert resolved.max_total_tokens == 528 - 16 - 1
    for source in range(1, resolved.max_total_tokens):
        decoder = 1 + resolved.max_total_tokens - source
        assert -(-source // 16) - (-decoder // 16) <= resolved.num_blocks


def test_a_device_with_one_block_per_sequence_has_no_place_for_sources():
    with pytest.raises(ConfigError, match="one block"):
        run(STATIC, model=T5)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"max_total_tokens": 2000}, "the model knows 1024 positions"),
        ({"max_input_tokens": 1024}, r"`max_input_tokens`\(1024\) must be < `max_total_tokens`\(1024\)"),
        ({"max_batch_total_tokens": 10**9}, "810000 tokens fit|809[0-9]+ tokens fit|fit into"),
        ({"max_total_tokens": 512, "max_batch_total_tokens": 100}, "must be <= `max_batch_total_tokens`"),
        ({"dtype": "int3"}, "--dtype int3: this device computes in bfloat16"),
        ({"max_batch_size": 0}, "--max-batch-size must be at least 1"),
        ({"max_total_tokens": 1}, "--max-total-tokens must be at least 2"),
        ({"memory_fraction": 2.0}, "at most 1"),
    ],
)
def test_impossible_wishes_are_refused(wishes, message):
    with pytest.raises(ConfigError, match=message):
        run(**wishes)


def test_more_sequences_than_slots_are_refused():
    with pytest.raises(ConfigError, match="4 slots"):
        run(STATIC, max_batch_size=5)


def test_no_room_for_a_cache_is_an_error():
    with pytest.raises(ConfigError, match="no memory for a KV cache"):
        run(free=10**8 + 1000)


def test_a_float32_checkpoint_stays_float32_and_a_float16_one_takes_the_best():
    model = parse_model_config({**MODEL.raw, "dtype": "float32"})
    assert resolve_dtype(EngineConfig(), model, GPU)[0] == "float32"
    model = parse_model_config({**MODEL.raw, "dtype": "float16"})
    assert resolve_dtype(EngineConfig(), model, HOST)[0] == "bfloat16"


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"max_total_tokens": 600}, "the compiled model holds 512 tokens of a sequence"),
        ({"max_input_tokens": 300}, "the compiled model reads prompts of 256 tokens"),
    ],
)
def test_more_than_a_model_was_compiled_for_is_refused(wishes, message):
    with pytest.raises(ConfigError, match=message):
        run(STATIC, **wishes)


def test_a_device_without_float32_takes_its_best():
    model = replace(MODEL, dtype="float32")
    assert resolve_dtype(EngineConfig(), model, replace(GPU, dtypes=("bfloat16",)))[0] == "bfloat16"


def test_what_a_model_has_chosen_is_told():
    facts = Facts(model_id="m", device="d", device_reason="r", free_bytes=0, weight_bytes=0, token_bytes=0)
    chosen = Reason("slots", "4", "it was compiled so")
    assert resolve(EngineConfig(), MODEL, STATIC, facts, [chosen]).reasons[1] == chosen
