import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tgi_core.testing.tiny import FAMILIES, VOCABULARY, make_checkpoint, make_tokenizer

ENCODER_DECODERS = ["bart", "m2m_100", "mt5", "pegasus", "t5", "umt5"]
CAUSAL = sorted(set(FAMILIES) - set(ENCODER_DECODERS))


def greedy(folder, length=24):
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=length, do_sample=False, pad_token_id=2)
    return ids[0].tolist()[4:]


@pytest.mark.parametrize("family", CAUSAL)
def test_greedy_tokens_vary(family, tmp_path):
    assert len(set(greedy(make_checkpoint(tmp_path, family)))) >= 4


def test_a_family_without_sizes_of_its_own_takes_those_that_are_given(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    make_checkpoint(tmp_path, "arcee", num_hidden_layers=2, **sizes)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ArceeForCausalLM"]


def test_an_encoder_decoder_is_written(tmp_path):
    make_checkpoint(tmp_path, "t5")
    assert json.loads((tmp_path / "config.json").read_text())["is_encoder_decoder"]


def test_the_same_seed_gives_the_same_model(tmp_path):
    a, b = make_checkpoint(tmp_path / "a"), make_checkpoint(tmp_path / "b")
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_another_seed_gives_another_model_and_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b = make_checkpoint(tmp_path / "a"), make_checkpoint(tmp_path / "b", seed=1)
    assert (a / "model.safetensors").read_bytes() != (b / "model.safetensors").read_bytes()
    assert torch.equal(before, torch.get_rng_state())


def test_shards_come_with_an_index(tmp_path):
    make_checkpoint(tmp_path, shards=3)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    assert (tmp_path / "model.safetensors.index.json").exists()


def test_the_configuration_can_be_overridden(tmp_path):
    make_checkpoint(tmp_path, "llama", num_hidden_layers=1, tie_word_embeddings=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_hidden_layers"], config["tie_word_embeddings"]) == (1, True)


@pytest.mark.parametrize("text", ["The scheduler decides.", "naïve 你好 🎉", "\x00\n\t  ", "never seen: ßΩ☃"])
def test_the_tokenizer_gives_every_text_back(text):
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < VOCABULARY


def test_the_tokenizer_has_a_chat_template(tmp_path):
    make_checkpoint(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("<|im_start|>") == 3
    assert "assistant" in json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
