"""Models of real shapes with random weights, written where they are measured: nothing is downloaded."""

from __future__ import annotations

import json
import random
import string
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, trainers

from tgi_core.testing.tiny import write_tokenizer

Config = dict[str, Any]
LEARNED_WORDS = 60_000  #: enough that every id of the vocabularies means something


class Weight(NamedTuple):
    """One of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    #: "decode": every step; "head": too, but once for a prompt; "expert": if it is chosen; "source": when a source is
    #: read; "look-up": a row for a token
    reader: str = "decode"


def _llama(c: Config, feed_forward: Callable[[Config, str], Iterator[Weight]]) -> Iterator[Weight]:
    n = c["hidden_size"]
    kv_size = c["num_key_value_heads"] * n // c["num_attention_heads"]
    yield Weight("model.embed_tokens.weight", (c["vocab_size"], n), "head" if c["tie_word_embeddings"] else "look-up")
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, rows in (("q", n), ("k", kv_size), ("v", kv_size), ("o", n)):
            yield Weight(f"{at}self_attn.{name}_proj.weight", (rows, n))
        yield from feed_forward(c, at)
        yield Weight(f"{at}input_layernorm.weight", (n,))
        yield Weight(f"{at}post_attention_layernorm.weight", (n,))
    yield Weight("model.norm.weight", (n,))
    if not c["tie_word_embeddings"]:
        yield Weight("lm_head.weight", (c["vocab_size"], n), "head")


def _gated(c: Config, at: str) -> Iterator[Weight]:
    n, wide = c["hidden_size"], c["intermediate_size"]
    for name, shape in (("gate", (wide, n)), ("up", (wide, n)), ("down", (n, wide))):
        yield Weight(f"{at}mlp.{name}_proj.weight", shape)


def _experts(c: Config, at: str) -> Iterator[Weight]:
    n, wide = c["hidden_size"], c["intermediate_size"]
    yield Weight(f"{at}block_sparse_moe.gate.weight", (c["num_local_experts"], n))
    for expert in range(c["num_local_experts"]):
        for name, shape in (("w1", (wide, n)), ("w3", (wide, n)), ("w2", (n, wide))):
            yield Weight(f"{at}block_sparse_moe.experts.{expert}.{name}.weight", shape, "expert")


def _gpt_neox(c: Config) -> Iterator[Weight]:
    n, wide = c["hidden_size"], c["intermediate_size"]
    yield Weight("gpt_neox.embed_in.weight", (c["vocab_size"], n), "look-up")
    for i in range(c["num_hidden_layers"]):
        at = f"gpt_neox.layers.{i}."
        for name, rows, columns in (
            ("attention.query_key_value", 3 * n, n),
            ("attention.dense", n, n),
            ("mlp.dense_h_to_4h", wide, n),
            ("mlp.dense_4h_to_h", n, wide),
        ):
            yield Weight(f"{at}{name}.weight", (rows, columns))
            yield Weight(f"{at}{name}.bias", (rows,))
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield Weight(f"{at}{name}.weight", (n,))
            yield Weight(f"{at}{name}.bias", (n,))
    yield Weight("gpt_neox.final_layer_norm.weight", (n,))
    yield Weight("gpt_neox.final_layer_norm.bias", (n,))
    yield Weight("embed_out.weight", (c["vocab_size"], n), "head")


def _t5(c: Config) -> Iterator[Weight]:
    n, wide, inner = c["d_model"], c["d_ff"], c["num_heads"] * c["d_kv"]
    yield Weight("shared.weight", (c["vocab_size"], n), "look-up")
    for stack, reader in (("encoder", "source"), ("decoder", "decode")):
        for i in range(c["num_layers"]):
            at = f"{stack}.block.{i}.layer."
            kinds = ("SelfAttention", "EncDecAttention") if stack == "decoder" else ("SelfAttention",)
            for number, kind in enumerate(kinds):
                for name in "qkvo":
                    shape = (n, inner) if name == "o" else (inner, n)
                    read = "source" if kind == "EncDecAttention" and name in "kv" else reader
                    yield Weight(f"{at}{number}.{kind}.{name}.weight", shape, read)
                yield Weight(f"{at}{number}.layer_norm.weight", (n,), reader)
            for name, shape in (("wi_0", (wide, n)), ("wi_1", (wide, n)), ("wo", (n, wide))):
                yield Weight(f"{at}{len(kinds)}.DenseReluDense.{name}.weight", shape, reader)
            yield Weight(f"{at}{len(kinds)}.layer_norm.weight", (n,), reader)
        buckets = (c["relative_attention_num_buckets"], c["num_heads"])
        yield Weight(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", buckets, reader)
        yield Weight(f"{stack}.final_layer_norm.weight", (n,), reader)
    yield Weight("lm_head.weight", (c["vocab_size"], n), "head")


#: architecture -> (what its config.json says besides sizes, its weights)
ARCHITECTURES: dict[str, tuple[Config, Callable[[Config], Iterator[Weight]]]] = {
    "LlamaForCausalLM": (
        {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0},
        lambda c: _llama(c, _gated),
    ),
    "MixtralForCausalLM": (
        {"model_type": "mixtral", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e6},
        lambda c: _llama(c, _experts),
    ),
    "GPTNeoXForCausalLM": (
        {"model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_pct": 0.25,
         "rotary_emb_base": 10000, "use_parallel_residual": True},
        _gpt_neox,
    ),
    "T5ForConditionalGeneration": (
        {"model_type": "t5", "is_encoder_decoder": True, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
         "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        _t5,
    ),
}  # fmt: skip

_SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: dict[str, Config] = {
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 49152, "max_position_embeddings": 16384, "tie_word_embeddings": False,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 49152, "max_position_embeddings": 16384, "tie_word_embeddings": True,
    },
    "135m": _SMOLLM2,
    "mixtral": {  # Mixtral-8x7B, of whose layers there are 8
        "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 8, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "vocab_size": 32000, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    },
    "neox": {  # Pythia 6.9B
        "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 4096, "intermediate_size": 16384,
        "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 50432, "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "t5": {  # FLAN-T5-XL
        "architectures": ["T5ForConditionalGeneration"], "d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_heads": 32,
        "num_layers": 24, "num_decoder_layers": 24, "vocab_size": 32128, "n_positions": 512,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


def words(count: int, generator: random.Random) -> list[str]:
    """Random ones, of lengths as in English."""
    return ["".join(generator.choices(string.ascii_lowercase, k=generator.randint(2, 8))) for _ in range(count)]


class Shape:
    """A model of these sizes, some of which may be changed."""

    def __init__(self, name: str, **changes: int) -> None:
        self.name = name
        sizes = {"architectures": ["LlamaForCausalLM"], **SHAPES[name], **changes}
        (architecture,) = sizes["architectures"]
        own, weights = ARCHITECTURES[architecture]
        self.config = {"torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, **own, **sizes}
        self.weights = tuple(weights(self.config))
        self.layers = self.config.get("num_hidden_layers") or self.config["num_layers"]
        self.hidden = self.config.get("hidden_size") or self.config["d_model"]
        heads = self.config.get("num_attention_heads") or self.config["num_heads"]
        self.head = self.config.get("d_kv") or self.hidden // heads
        self.inner = heads * self.head
        self.kv_size = self.config.get("num_key_value_heads", heads) * self.head

    @property
    def layer_products(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of a Llama layer's products, with those of the same input fused."""
        n, wide = self.hidden, self.config["intermediate_size"]
        return [(n + 2 * self.kv_size, n), (n, n), (2 * wide, n), (n, wide)]

    def elements(self, *readers: str) -> int:
        """Of all weights that these read."""
        return sum(torch.Size(weight.shape).numel() for weight in self.weights if weight.reader in readers)

    def read_elements(self, rows: int = 1) -> float:
        """Weights that a decode of so many rows reads, each of which chooses experts at random."""
        if not (experts := self.config.get("num_local_experts")):
            return self.elements("decode", "head")
        left_out = (1 - self.config["num_experts_per_tok"] / experts) ** rows
        return self.elements("decode", "head") + self.elements("expert") * (1 - left_out)

    @property
    def is_decoder(self) -> bool:
        """Whether there is no encoder."""
        return not self.config.get("is_encoder_decoder")

    @property
    def token_elements(self) -> float:
        """Weights that every token of a prompt is multiplied with; the last one of a decoder meets the head too."""
        if not self.is_decoder:
            return self.elements("source")
        chosen = self.config.get("num_experts_per_tok", 0) / self.config.get("num_local_experts", 1)
        return self.elements("decode") + self.elements("expert") * chosen

    @property
    def token_bytes(self) -> int:
        """Of KV cache."""
        return 2 * 2 * self.kv_size * self.layers

    def write(self, folder: Path, device: str) -> Path:
        """A checkpoint of random weights, made on a device; kept if it is there."""
        folder = folder / self.name
        if (folder / "config.json").exists():
            return folder
        folder.mkdir(parents=True)
        self._write_tokenizer(folder)
        header, at = {}, 0
        for name, shape, _ in self.weights:
            size = 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, shape, _ in self.weights:
                weight = torch.randn(shape, dtype=torch.bfloat16, device=device) * shape[-1] ** -0.5
                weight = weight + 1 if name.endswith("norm.weight") else weight
                file.write(weight.view(torch.int16).cpu().numpy().tobytes())
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder

    def _write_tokenizer(self, folder: Path) -> None:
        """As large as the vocabulary: what is generated is text."""
        write_tokenizer(folder)
        path = str(folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(path)
        special = [str(token) for token in tokenizer.get_added_tokens_decoder().values()]
        alphabet = [token for token in tokenizer.get_vocab() if len(token) == 1]
        trainer = trainers.BpeTrainer(
            vocab_size=self.config["vocab_size"], special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        learned = (f" {word}" for word in words(LEARNED_WORDS, random.Random(0)))
        tokenizer.train_from_iterator(learned, trainer)
        tokenizer.save(path)
