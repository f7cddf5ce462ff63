"""Tiny checkpoints of every family, with the quirks of their configurations."""

import pytest

from tgi_core.testing.tiny import make_checkpoint

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [1.5 + i for i in range(8)],
    "rope_theta": 10000.0,
}

CHECKPOINTS = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama 2, multi-head": ("llama", {"num_key_value_heads": 4}),
    "llama, multi-query": ("llama", {"num_key_value_heads": 1}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, own head size": ("llama", {"head_dim": 24}),
    "code llama, large theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama, dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama, yarn rope": ("llama", {"rope_parameters": YARN_ROPE}),
    "llama, sharded": ("llama", {"shards": 3}),
    "mistral v0.1, window of 16": ("mistral", {}),
    "mistral v0.2, no window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows above layer 0": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "mixtral": ("mixtral", {}),
    "mixtral, top 3 of 5, window, sharded": (
        "mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 16, "shards": 2},
    ),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_moe, every other layer, normalised": (
        "qwen2_moe",
        {"decoder_sparse_step": 2, "norm_topk_prob": True, "num_hidden_layers": 3},
    ),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3_moe, a plain layer, tied": ("qwen3_moe", {"mlp_only_layers": [0], "tie_word_embeddings": True}),
    "phi3": ("phi3", {}),
    "phi3, window, multi-head, partial rotary": (
        "phi3",
        {"sliding_window": 16, "num_key_value_heads": 4, "partial_rotary_factor": 0.5, "tie_word_embeddings": True},
    ),
    "phi3, longrope, short factors": ("phi3", {"rope_parameters": {**LONGROPE, "factor": 4.0}}),
    "phi3, longrope, long factors": (
        "phi3",  # which transformers takes from the second token on, and the first one does not turn
        {"original_max_position_embeddings": 1, "rope_parameters": {**LONGROPE, "attention_factor": 1.25}},
    ),
    "starcoder2": ("starcoder2", {}),
    "starcoder2, without biases, window, own head": (
        "starcoder2",
        {"use_bias": False, "sliding_window": 16, "tie_word_embeddings": False},
    ),
    "stablelm": ("stablelm", {}),
    "stablelm, normed heads, parallel, biases": (
        "stablelm",
        {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    ),
    "granite": ("granite", {}),
    "granite, tied, biases, without multipliers": (
        "granite",
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
    ),
    "olmo2": ("olmo2", {}),
    "olmo2, multi-head, biases, tied": (
        "olmo2",
        {"num_key_value_heads": 4, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "cohere": ("cohere", {}),
    "cohere, normed heads, biases": ("cohere", {"use_qk_norm": True, "attention_bias": True}),
    "gemma": ("gemma", {}),
    "gemma, untied, multi-query, old name of its gelu": (
        "gemma",
        {"tie_word_embeddings": False, "num_key_value_heads": 1, "hidden_act": "gelu"},
    ),
    "gemma2": ("gemma2", {}),
    "gemma2, without caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("gemma3_text", {}),
    "gemma3, linear rope in global layers": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "bloom": ("bloom", {}),
    "bloom, 6 heads": ("bloom", {"hidden_size": 96, "n_head": 6}),
    "bloom, residual after norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "falcon 7b": ("falcon", {}),
    "falcon 40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon 11b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon, multi-head, sequential, biases": (
        "falcon",
        {"multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "gpt2": ("gpt2", {}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 96}),
    "starcoder": ("gpt_bigcode", {}),
    "starcoder, multi-head": ("gpt_bigcode", {"multi_query": False}),
    "gptj": ("gptj", {}),
    "mpt": ("mpt", {}),
    "mpt, flag of ALiBi off, scaled": ("mpt", {"attn_config": {"alibi": False, "softmax_scale": 0.3}}),
    "mpt, 6 heads, clipped": ("mpt", {"d_model": 96, "n_heads": 6, "attn_config": {"clip_qkv": 0.5}}),
    "opt": ("opt", {}),
    "opt, without a last norm": ("opt", {"_remove_final_layer_norm": True}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "galactica": ("opt", {"activation_function": "gelu", "enable_bias": False}),
    "galactica 120b": (
        "opt",
        {"activation_function": "gelu", "enable_bias": False, "layer_norm_elementwise_affine": False},
    ),
    "phi": ("phi", {}),
    "phi, grouped, normed": ("phi", {"num_key_value_heads": 2, "qk_layernorm": True, "partial_rotary_factor": 0.25}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, sequential, whole rotary": ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "gpt_neox, tied, without attention biases": ("gpt_neox", {"tie_word_embeddings": True, "attention_bias": False}),
}


@pytest.fixture(scope="module", params=CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def folder(request, tmp_path_factory):
    """Each checkpoint in turn."""
    family, options = request.param
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), family, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """All checkpoints at once: name -> folder."""
    base = tmp_path_factory.mktemp("checkpoints")
    return {
        name: make_checkpoint(base / str(number), family, **options)
        for number, (name, (family, options)) in enumerate(CHECKPOINTS.items())
    }
