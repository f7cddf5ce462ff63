"""tokenizer.model without tokenizer.json."""

import json
import random

import pytest

from tgi_core.errors import TokenizerError
from tgi_core.testing.tiny import TEXT
from tgi_core.tokenizer.tokenizer import load_tokenizer
from tgi_core.weights.source import ModelFiles

sentencepiece = pytest.importorskip("sentencepiece")


def train(folder, **options):
    """A small model with the settings of Llama's."""
    corpus = folder / "corpus.txt"
    corpus.write_text(TEXT * 20 + "  indented\n    twice\n" * 30)
    settings = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    settings |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "split_digits": True}
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=600, minloglevel=2, **settings | options
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def load(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **config}))
    return load_tokenizer(ModelFiles("m", folder, (), None, {}, {}))


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_are_those_of_sentencepiece(tmp_path, prefix):
    model = train(tmp_path, add_dummy_prefix=prefix)
    own = load(tmp_path)
    generator = random.Random(0)
    words = [*TEXT.split(), " ", "  ", "    ", "\n", "\t", "🎉", "ÿ", ""]
    texts = [" ".join(generator.choices(words, k=12)) for _ in range(100)]
    for text in ["", "a", " a", "a  b", "  a   b ", *texts]:
        ids = own.encode(text, add_special_tokens=False)
        assert ids == model.encode(text), text
        assert own.decode(ids) == model.decode(ids), text


def test_start_and_end_are_those_of_the_config(tmp_path):
    model = train(tmp_path)
    ids = model.encode("Hello")
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    assert load(tmp_path, add_bos_token=True, **names).encode("Hello") == [1, *ids]
    assert load(tmp_path, add_bos_token=True, add_eos_token=True, **names).encode("Hello") == [1, *ids, 2]
    assert load(tmp_path, add_bos_token=False, **names).encode("Hello") == ids
    added = {"600": {"content": "<|im_start|>", "special": True}}
    assert load(tmp_path, added_tokens_decoder=added, **names).encode("<|im_start|>")[-1] == 600


def test_a_damaged_file_says_so(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"no model at all")
    with pytest.raises(TokenizerError):
        load(tmp_path)
