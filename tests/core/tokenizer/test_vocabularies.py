"""Real vocabularies of the families.  `nox -s vocabularies` fetches them and runs these tests."""

import json
import os
import random
from pathlib import Path

import pytest

from tgi_core.tokenizer.detokenizer import TextStream
from tgi_core.tokenizer.tokenizer import load_tokenizer
from tgi_core.weights.gguf_header import read_gguf_header
from tgi_core.weights.gguf_tokenizer import tokenizer_files
from tgi_core.weights.source import ModelFiles

FOLDER = os.environ.get("TGI_VOCABULARIES", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="`nox -s vocabularies` fetches the vocabularies")

WITH_EXPECTED_IDS = (
    *("command-r", "falcon", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "refact", "starcoder"),
)
TEXTS = (
    "The capital of France is Paris.\n\n  def add(a, b):\n\treturn a + b  # 3 spaces:   and 1234567.89",
    "Größe, naïve, déjà vu, žluťoučký kůň, привет мир, 你好世界, こんにちは, 안녕하세요, नमस्ते, مرحبا, 🎉🙂👩‍👩‍👧‍👦",
    " leading, trailing , a\u00a0b, a\u200db, \ufeff, ﬁ, é and e\u0301, \x00, \x7f, \r\n, '''quotes''', I'm <html>",
)


def tokenizer(name, tmp_path):
    """The tokenizer of a vocabulary, as a model's folder would give it."""
    folder = Path(FOLDER) / name
    if not folder.is_dir():
        path = Path(FOLDER) / f"ggml-vocab-{name}.gguf"
        for file, content in tokenizer_files(path, read_gguf_header(path).metadata).items():
            (tmp_path / file).write_text(json.dumps(content))
        folder = tmp_path
    return load_tokenizer(ModelFiles(name, folder, (), None, {}, {}))


@pytest.fixture(params=(*WITH_EXPECTED_IDS, "t5", "mistral"))
def any_tokenizer(request, tmp_path):
    return tokenizer(request.param, tmp_path)


def streamed(tokenizer, ids, *, skip):
    stream = TextStream(tokenizer, skip_special_tokens=skip)
    return "".join([*(stream.add(token) for token in ids), stream.flush()])


@pytest.mark.parametrize("name", WITH_EXPECTED_IDS)
def test_ids_are_those_that_the_vocabulary_comes_with(name, tmp_path):
    own = tokenizer(name, tmp_path)
    stem = Path(FOLDER) / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{stem}.inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = [[int(i) for i in line.split()] for line in Path(f"{stem}.out").read_text().split("\n")]
    assert len(texts) > 40
    for text, ids in zip(texts, expected, strict=False):
        assert own.encode(text, add_special_tokens=False) == ids, text


@pytest.mark.parametrize("skip", [True, False])
def test_streamed_text_equals_text_decoded_at_once(any_tokenizer, skip):
    generator = random.Random(0)
    for text in TEXTS:
        ids = any_tokenizer.encode(text)
        assert streamed(any_tokenizer, ids, skip=skip) == any_tokenizer.decode(ids, skip_special_tokens=skip)
    for length in (1, 2, 3, 10, 100, 400):
        for _ in range(20):
            ids = [generator.randrange(any_tokenizer.vocab_size) for _ in range(length)]
            assert streamed(any_tokenizer, ids, skip=skip) == any_tokenizer.decode(ids, skip_special_tokens=skip)


def test_fill_in_the_middle_tokens_of_starcoder_are_single_ids(tmp_path):
    own = tokenizer("starcoder", tmp_path)
    ids = own.encode("<fim_prefix>def f(x):\n    <fim_suffix>\n<fim_middle>")
    assert [own.token_to_id(f"<fim_{part}>") for part in ("prefix", "suffix", "middle")] == [
        token for token in ids if token in own.special_ids
    ]


def test_t5_ends_its_prompts(tmp_path):
    own = tokenizer("t5", tmp_path)
    assert own.decode(own.encode("translate English to German: How old are you?")[-1:], skip_special_tokens=False) == (
        "</s>"
    )


def test_mistral_equals_sentencepiece(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=f"{FOLDER}/mistral/tokenizer.model")
    own = tokenizer("mistral", tmp_path)
    for text in TEXTS[:2]:
        assert own.encode(text, add_special_tokens=False) == model.encode(text)
