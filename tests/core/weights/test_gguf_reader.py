import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

from tgi_core.errors import UnsupportedModel, WeightsError
from tgi_core.testing.tiny import make_checkpoint
from tgi_core.weights.gguf_header import read_gguf_header
from tgi_core.weights.reader import open_weights
from tgi_core.weights.source import resolve_model


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"])
def test_every_tensor_comes_back_as_the_checkpoint_has_it(family, tmp_path, write_gguf):
    folder = make_checkpoint(tmp_path / family, family)
    reader = open_weights(resolve_model(str(write_gguf(folder))))
    expected = load_file(folder / "model.safetensors")
    assert reader.names == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(reader.get(name), tensor)
        assert reader.shape(name) == tuple(tensor.shape)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_quantised_tensors_are_what_the_gguf_library_makes_of_them(kind, llama, write_gguf):
    path = write_gguf(llama, kind)
    reader = open_weights(resolve_model(str(path)))
    expected = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    for name, stored in (
        ("model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
    ):
        assert np.array_equal(reader.get(name).float().numpy(), expected[stored])


def test_rows_and_dtype_can_be_chosen(llama, write_gguf):
    reader = open_weights(resolve_model(str(write_gguf(llama, Kind.Q8_0))))
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        whole = reader.get(name)
        part = reader.get(name, dtype=torch.bfloat16, rows=slice(3, 21))
        assert part.dtype == torch.bfloat16
        assert torch.equal(part, whole[3:21].bfloat16())
    norm = reader.get("model.norm.weight", rows=slice(1, 4))
    assert torch.equal(norm, reader.get("model.norm.weight")[1:4])


def test_biases_of_a_llama_are_reordered_too(tmp_path, write_gguf):
    folder = make_checkpoint(tmp_path / "x", "llama", attention_bias=True)
    reader = open_weights(resolve_model(str(write_gguf(folder))))
    expected = load_file(folder / "model.safetensors")
    for projection in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{projection}.bias"
        assert torch.equal(reader.get(name), expected[name])


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_gemmas_windows_and_caps_are_told(family, tmp_path, write_gguf):
    folder = make_checkpoint(tmp_path / family, family)
    ours = resolve_model(str(write_gguf(folder))).config
    own = resolve_model(str(folder), download_weights=False).config
    for name in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "architectures", "model_type"):
        assert ours.get(name) == pytest.approx(own.get(name)), name
    assert ours["query_pre_attn_scalar"] == ours["head_dim"] == 32


def test_the_configuration_is_said_in_hugging_faces_words(llama, write_gguf):
    files = resolve_model(str(write_gguf(llama)))
    config = files.config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["hidden_size"], config["num_key_value_heads"], config["head_dim"]) == (64, 2, 16)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 20000.0
    assert config["tie_word_embeddings"] is False
    assert files.generation_config["eos_token_id"] == [2, 4]


def test_a_missing_output_head_means_tied_embeddings(tmp_path, write_gguf):
    folder = make_checkpoint(tmp_path / "x", "llama", tie_word_embeddings=True)
    assert resolve_model(str(write_gguf(folder))).config["tie_word_embeddings"] is True


def test_an_unknown_architecture_is_named(tmp_path, llama, write_gguf):
    path = write_gguf(llama)
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"))
    with pytest.raises(UnsupportedModel, match=r"mamba.*use the safetensors checkpoint"):
        resolve_model(str(path))


def test_an_unknown_tensor_name_in_the_checkpoint_is_asked_for(llama, write_gguf):
    reader = open_weights(resolve_model(str(write_gguf(llama))))
    with pytest.raises(WeightsError, match=r"no tensor lm_head\.bias"):
        reader.get("lm_head.bias")


def test_the_header_agrees_with_the_gguf_library(llama, write_gguf):
    path = write_gguf(llama, Kind.Q8_0)
    header, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    assert {n: (t.offset, t.size, t.shape) for n, t in header.tensors.items()} == {
        t.name: (t.data_offset, t.n_bytes, tuple(reversed(t.shape.tolist()))) for t in theirs.tensors
    }
    assert header.metadata == {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
