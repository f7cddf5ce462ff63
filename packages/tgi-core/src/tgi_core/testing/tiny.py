"""Makes tiny random checkpoints in Hugging Face's layout: for parity tests, no download needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

TEXT = """
The scheduler decides which sequences run in the next step, and how many tokens each of them gets. A prompt may be
cut into chunks, so that long prompts do not stop the others. When memory is short, the youngest sequence gives its
blocks back and is computed again later. What is the capital of France? The capital of France is Paris. Does the sun
rise in the east? Yes, and it sets in the west: 1, 2, 3, 10, 42, 1984. def add(a, b): return a + b. "Hello", she said,
'how are you today?' I'm fine; thanks! Größe, naïve, déjà vu, señor, žluťoučký kůň, привет, 你好, こんにちは, 🎉🙂.
"""
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY = 384

_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
_GEMMA = {**_LLAMA, "head_dim": 32, "tie_word_embeddings": True, "query_pre_attn_scalar": 24}
_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_PLAIN = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_T5 = {
    "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_MAMBA = {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2}
_BART = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 512, "pad_token_id": 0,
    "decoder_start_token_id": 2, "forced_eos_token_id": None, "activation_function": "relu",
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {  # model_type -> what differs from its configuration's defaults
    "bart": _BART,
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "cohere": {**_LLAMA, "tie_word_embeddings": True, "pad_token_id": 0, "logit_scale": 0.25},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512},
    "falcon_mamba": _MAMBA,
    "gemma": {**_LLAMA, "head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {**_GEMMA, "sliding_window": 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0},
    "gemma3_text": {**_GEMMA, "sliding_window": 16, "num_hidden_layers": 3, "sliding_window_pattern": 3},
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gptj": {**_GPT2, "rotary_dim": 8},
    "gpt_neo": {
        "hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 16, "max_position_embeddings": 512,
    },
    "gpt_neox": {**_PLAIN, "rotary_pct": 0.5},
    "granite": {
        **_LLAMA, "embedding_multiplier": 6.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6,
        "logits_scaling": 4.0,
    },
    "jamba": {
        **_LLAMA, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
        "expert_layer_period": 2, "mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False,
    },
    "llama": _LLAMA,
    "m2m_100": {**_BART, "scale_embedding": False},
    "mamba": _MAMBA,
    "mamba2": {**_MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 2},
    "mistral": {**_LLAMA, "sliding_window": 16},
    "mixtral": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 512},
    "olmo2": {**_LLAMA, "pad_token_id": 2},
    "opt": {
        "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 64,
        "max_position_embeddings": 512,
    },
    "pegasus": {**_BART, "decoder_start_token_id": 0},
    "phi": _LLAMA,
    "phi3": {**_LLAMA, "pad_token_id": 2},
    "qwen2": _LLAMA,
    "qwen2_moe": {**_LLAMA, **_MOE, "shared_expert_intermediate_size": 96},
    "qwen3": {**_LLAMA, "head_dim": 32},
    "qwen3_moe": {**_LLAMA, **_MOE, "head_dim": 32},
    "rwkv": {"hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 2, "context_length": 512},
    "stablelm": _LLAMA,
    "starcoder2": {**_LLAMA, "tie_word_embeddings": True},
    "t5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "mt5": _T5,
    "umt5": _T5,
    "xglm": {
        "d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 512,
        "pad_token_id": 0,
    },
}  # fmt: skip


def make_checkpoint(
    folder: Path | str,
    family: str = "llama",
    *,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a tiny random model with a tokenizer and a chat template, and return its folder.

    Its weights are spread widely enough that greedy tokens vary; biases and norm weights are random too, so that
    forgetting one shows.

    Args:
        folder: is made if it is missing.
        family: a `model_type` that transformers knows; those in FAMILIES are made tiny, of others `config` says sizes.
        shards: so many safetensors files, with an index if there are several.
        config: overrides the configuration's fields: `tie_word_embeddings=True`, `rope_scaling={...}`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, **FAMILIES.get(family, {}), **config}
    configuration = AutoConfig.for_model(family, **settings)
    kind = AutoModelForSeq2SeqLM if configuration.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(configuration)
        _spread(model)
    model = model.to(dtype).eval()
    total = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=total if shards == 1 else total // shards + total // 10)
    write = write_source_tokenizer if configuration.is_encoder_decoder else write_tokenizer
    write(folder, int(settings["vocab_size"]))
    return folder


def write_tokenizer(folder: Path, vocab_size: int = VOCABULARY) -> None:
    """Write a byte-level BPE tokenizer trained on TEXT, with a chat template; no id reaches `vocab_size`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(vocab_size).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def write_source_tokenizer(folder: Path, vocab_size: int = VOCABULARY) -> None:
    """Write a tokenizer as T5 has it: pieces of words, "</s>" after every text, no chat template."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def make_tokenizer(vocab_size: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE tokenizer trained on TEXT; every text can be encoded and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


@torch.no_grad()
def _spread(model: Any) -> None:
    """Layers speak louder than the embedding, even where that is the head too; vectors move a little."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, max(0.1, 2.5 / parameter.shape[-1] ** 0.5))
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.15 / getattr(module, "scalar_embed_scale", 1.0))
    for name, parameter in model.named_parameters():
        if name.endswith("Attention.q.weight"):  # T5's scores are not scaled
            parameter.mul_(model.config.d_kv**-0.5)
        elif name.endswith("relative_attention_bias.weight"):
            parameter.normal_(0, 1.0)
