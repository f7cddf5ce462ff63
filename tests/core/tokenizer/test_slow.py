import json
from pathlib import Path

import pytest

from tgi_core.errors import TokenizerError
from tgi_core.tokenizer.detokenizer import TextStream
from tgi_core.tokenizer.slow import SlowTokenizer
from tgi_core.tokenizer.tokenizer import TokenSpan, load_tokenizer
from tgi_core.weights.source import ModelFiles


def files(folder):
    return ModelFiles("m", Path(folder), (), None, {"model_type": "t5"}, {"eos_token_id": 5})


def test_a_folder_without_any_tokenizer_says_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json and transformers cannot load it"):
        load_tokenizer(files(tmp_path))


@pytest.fixture
def slow(tmp_path):
    """A tokenizer that runs in Python: ByT5's ids are bytes plus 3, so it needs no vocabulary file."""
    config = {"tokenizer_class": "ByT5Tokenizer", "chat_template": "{{ messages[0].content }}{{ eos_token }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return load_tokenizer(files(tmp_path))


def test_a_python_tokenizer_is_used_through_transformers(slow):
    assert isinstance(slow, SlowTokenizer)
    assert not slow.is_fast
    assert slow.encode("hé") == [107, 198, 172, 1]
    assert slow.decode([107, 198, 172, 1]) == "hé"
    assert (slow.eos_token, slow.eos_token_ids) == ("</s>", (5, 1))
    assert 1 in slow.special_ids
    assert slow.vocab_size >= 259
    assert slow.token_to_id("</s>") == 1
    assert slow.render_chat([{"role": "user", "content": "x"}]) == "x</s>"


def test_places_are_not_known(slow):
    assert slow.encode_with_offsets("h") == [TokenSpan(107, "", 0, 0), TokenSpan(1, "", 0, 0)]


@pytest.mark.parametrize("text", ["plain", "naïve 你好 🎉", "🎉🎉 a"])
def test_its_text_streams(slow, text):
    ids = slow.encode(text, add_special_tokens=False)
    stream = TextStream(slow)
    pieces = [stream.add(token_id) for token_id in ids]
    assert "�" not in "".join(pieces)
    assert "".join(pieces) + stream.flush() == text
