"""Llamas of real shapes with random weights, written where they are measured: nothing is downloaded."""

from __future__ import annotations

import json
import random
import string
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, trainers

from tgi_core.testing.tiny import write_tokenizer

SHAPES = {
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 49152, "max_position_embeddings": 16384, "tie_word_embeddings": False,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 49152, "max_position_embeddings": 16384, "tie_word_embeddings": True,
    },
    "135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
}  # fmt: skip


LEARNED_WORDS = 60_000  #: enough that every id of the vocabularies means something


def words(count: int, generator: random.Random) -> list[str]:
    """Random ones, of lengths as in English."""
    return ["".join(generator.choices(string.ascii_lowercase, k=generator.randint(2, 8))) for _ in range(count)]


class Shape:
    """A Llama of these sizes, some of which may be changed."""

    def __init__(self, name: str, **changes: int) -> None:
        self.name = name
        self.config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
            **SHAPES[name], **changes,
        }  # fmt: skip
        heads = self.config["num_attention_heads"]
        self.head = self.config["hidden_size"] // heads
        self.kv_size = self.config["num_key_value_heads"] * self.head

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        c, n = self.config, self.config["hidden_size"]
        yield "model.embed_tokens.weight", (c["vocab_size"], n)
        for i in range(c["num_hidden_layers"]):
            at = f"model.layers.{i}."
            for name, rows in (("q", n), ("k", self.kv_size), ("v", self.kv_size), ("o", n)):
                yield f"{at}self_attn.{name}_proj.weight", (rows, n)
            for name in ("gate", "up"):
                yield f"{at}mlp.{name}_proj.weight", (c["intermediate_size"], n)
            yield f"{at}mlp.down_proj.weight", (n, c["intermediate_size"])
            yield f"{at}input_layernorm.weight", (n,)
            yield f"{at}post_attention_layernorm.weight", (n,)
        yield "model.norm.weight", (n,)
        if not c["tie_word_embeddings"]:
            yield "lm_head.weight", (c["vocab_size"], n)

    @property
    def layer_products(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of a layer's products, with those of the same input fused."""
        n, wide = self.config["hidden_size"], self.config["intermediate_size"]
        return [(n + 2 * self.kv_size, n), (n, n), (2 * wide, n), (n, wide)]

    @property
    def read_elements(self) -> int:
        """Weights that a decode reads."""
        sizes = {name: torch.Size(shape).numel() for name, shape in self.tensors()}
        if not self.config["tie_word_embeddings"]:
            del sizes["model.embed_tokens.weight"]
        return sum(sizes.values())

    @property
    def token_bytes(self) -> int:
        """Of KV cache."""
        return 2 * 2 * self.kv_size * self.config["num_hidden_layers"]

    def write(self, folder: Path, device: str) -> Path:
        """A checkpoint of random weights, made on a device; kept if it is there."""
        folder = folder / self.name
        if (folder / "config.json").exists():
            return folder
        folder.mkdir(parents=True)
        self._write_tokenizer(folder)
        header, at = {}, 0
        for name, shape in self.tensors():
            size = 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, shape in self.tensors():
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
