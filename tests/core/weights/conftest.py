import json

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from huggingface_hub import constants
from safetensors.numpy import load_file

from tgi_core.testing.tiny import make_checkpoint, make_tokenizer
from tgi_core.weights.gguf_config import ARCHITECTURES, LAYER_NAMES, NAMES
from tgi_core.weights.source import read_json

CONFIG_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A hub cache of the test's own."""
    folder = tmp_path_factory.mktemp("hf_home")
    monkeypatch.setattr(constants, "HF_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A tiny llama, not to be changed."""
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """The same in three files, not to be changed."""
    return make_checkpoint(tmp_path_factory.mktemp("sharded"), "llama", shards=3)


@pytest.fixture
def write_gguf(tmp_path):
    """Writes a checkpoint folder as a GGUF file, the way llama.cpp's converter does."""

    def write(folder, kind=GGMLQuantizationType.F32, name="model.gguf", **metadata):
        config = read_json(folder / "config.json")
        architecture = config["model_type"].removesuffix("_text")
        writer = GGUFWriter(tmp_path / name, architecture)
        for key, gguf_key in CONFIG_KEYS.items():
            value = config.get(key)
            if isinstance(value, float):
                writer.add_float32(f"{architecture}.{gguf_key}", value)
            elif value is not None:
                writer.add_uint32(f"{architecture}.{gguf_key}", value)
        writer.add_float32(f"{architecture}.rope.freq_base", 20000.0)
        _add_tokenizer(writer, metadata)
        for hf_name, array in load_file(folder / "model.safetensors").items():
            _add_tensor(writer, hf_name, array, config, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


def _add_tokenizer(writer, metadata):
    tokenizer = make_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(metadata.get("pre", "gpt-2"))
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if i < 5 else 1 for i in range(len(vocabulary))])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(4)
    writer.add_add_bos_token(metadata.get("add_bos", False))
    writer.add_chat_template(metadata.get("chat_template", "{{ messages[0].content }}"))


def _add_tensor(writer, hf_name, array, config, kind):
    if config["model_type"] == "llama":
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for projection, count in heads.items():
            if f".{projection}." in hf_name:
                halves = array.reshape(count, 2, array.shape[0] // count // 2, *array.shape[1:])
                array = halves.swapaxes(1, 2).reshape(array.shape)
    if config["model_type"].startswith("gemma") and hf_name.endswith("norm.weight"):
        array = array + 1
    stored = GGMLQuantizationType.F32 if array.ndim == 1 else kind
    name = gguf_name(config["model_type"].removesuffix("_text"), hf_name)
    writer.add_tensor(name, quantize(np.ascontiguousarray(array), stored), raw_dtype=stored)


def gguf_name(architecture, hf_name):
    stem, _, suffix = hf_name.rpartition(".")
    if stem.startswith("model.layers."):
        layer, _, inner = stem.removeprefix("model.layers.").partition(".")
        names = LAYER_NAMES | dict(ARCHITECTURES[architecture].layer_names)
        found = next(g for g, h in names.items() if h == inner)
        return f"blk.{layer}.{found}.{suffix}"
    return f"{next(g for g, h in NAMES.items() if h == stem)}.{suffix}"
