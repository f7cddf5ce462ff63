"""Families, prompts and lengths of the vendor's tests, for this process and for the reference's."""

from tgi_core.testing.tiny import VOCABULARY

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
#: name -> (family of `tgi_core.testing.tiny`, what differs from its configuration)
CHECKPOINTS = {
    "bloom": ("bloom", {}),
    "cohere": ("cohere", {}),
    "falcon": ("falcon", {}),
    "falcon-alibi": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gpt2": ("gpt2", {}),
    "gpt2-scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("gpt_neox", {}),
    "gptj": ("gptj", {}),
    "granite": ("granite", {}),
    "llama": ("llama", {}),
    "llama-heads": ("llama", {"head_dim": 32}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama3": ("llama", {"rope_scaling": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 16}),
    "mixtral": ("mixtral", {"sliding_window": None}),
    "mpt": ("mpt", {}),
    "opt": ("opt", {}),
    "phi": ("phi", {"num_key_value_heads": 4}),
    "phi-grouped": ("phi", {}),
    "qwen2": ("qwen2", {}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_moe-dense": ("qwen2_moe", {"mlp_only_layers": [0]}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "stablelm": ("stablelm", {}),
    "starcoder": ("gpt_bigcode", {}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "t5": ("t5", {}),
}
PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((3, 12, 33, 17, 40, 16, 7))]
LENGTHS = (30, 9, 50, 3, 21, 1, 40)
FLOAT8 = ("gpt_neox", "llama", "mistral", "mpt", "phi", "qwen2", "qwen3")
FLOAT8_TOKENS = 8  #: after each prompt
