import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from tgi_core.errors import TokenizerError
from tgi_core.testing.tiny import VOCABULARY, write_tokenizer
from tgi_core.tokenizer.tokenizer import TokenSpan

TEXTS = ["The scheduler decides.", "  two  spaces\n", "naïve 你好 🎉", "", "<|im_start|>user\nhi<|im_end|>"]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_transformers_own(load, tmp_path, text):
    tokenizer, theirs = load(), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode(text)
    assert ids == theirs.encode(text)
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_offsets_are_bytes(tokenizer):
    spans = tokenizer.encode_with_offsets("naïve 你好")
    data = "naïve 你好".encode()
    assert all(data[span.start : span.stop].decode() == span.text for span in spans)
    assert (spans[0].start, spans[-1].stop) == (0, len(data))
    assert [span.id for span in spans] == tokenizer.encode("naïve 你好")


def test_added_special_tokens_have_no_place(load):
    tokenizer = load({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    assert tokenizer.encode_with_offsets("The")[0] == TokenSpan(1, "", 0, 0)
    assert tokenizer.encode_with_offsets("The", add_special_tokens=False)[0].text == "The"


def test_special_tokens_in_a_text_are_found(tokenizer):
    assert tokenizer.encode("a</s>b")[1] == 2
    assert tokenizer.decode([2]) == ""
    assert tokenizer.decode([2], skip_special_tokens=False) == "</s>"


def test_half_a_character_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="half a character"):
        tokenizer.encode("\ud800")


def test_ids_outside_the_vocabulary_give_nothing(tokenizer):
    assert tokenizer.decode([10**6]) == ""


def test_a_truncating_tokenizer_does_not_truncate(load, tmp_path):
    backend = load().backend
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    assert len(load(files={"tokenizer.json": backend.to_str()}).encode("The scheduler decides")) > 3


def test_facts(load):
    tokenizer = load()
    assert tokenizer.vocab_size == VOCABULARY
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}
    assert tokenizer.is_fast
    assert "im_start" in tokenizer.chat_template


@pytest.mark.parametrize(
    ("generation", "model", "ids"),
    [
        ({}, {}, (2,)),
        ({"eos_token_id": [4, 7]}, {"eos_token_id": 9}, (4, 7, 2)),
        ({"eos_token_id": 4}, {}, (4, 2)),
        ({}, {"eos_token_id": 9}, (9, 2)),
        ({}, {"text_config": {"eos_token_id": [5]}}, (5, 2)),
        ({"eos_token_id": [4, "5", -1, None, {}]}, {}, (4, 2)),
        ({"eos_token_id": {}}, {"eos_token_id": 9}, (2,)),
    ],
)
def test_ends_of_text_are_joined(load, generation, model, ids):
    assert load(generation_config=generation, model_config=model).eos_token_ids == ids


def test_tokens_may_be_objects(load):
    tokenizer = load({"eos_token": {"content": "<|im_end|>", "special": True}})
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_ids == (4,)


def test_tokens_that_only_the_configuration_calls_special_are_special(load):
    backend = json.loads(load().backend.to_str())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] != "</s>"]
    config = {"added_tokens_decoder": {"384": {"content": "<extra>", "special": True}}, "mask_token": "<nowhere>"}
    tokenizer = load(config, files={"tokenizer.json": backend})
    assert tokenizer.encode("a</s><extra>")[1:] == [2, 384]
    assert {2, 384} <= tokenizer.special_ids
    assert tokenizer.vocab_size == 385  # a special token without an id of its own is not added


@pytest.mark.parametrize(("bos", "eos", "ids"), [(True, False, [1]), (False, True, [2]), (True, True, [1, 2])])
def test_llamas_start_and_end_follow_the_configuration(load, bos, eos, ids):
    tokenizer = load({"tokenizer_class": "LlamaTokenizer", "add_bos_token": bos, "add_eos_token": eos})
    assert tokenizer.encode("") == ids


def test_token_texts_keep_their_space(tokenizer, spaced_tokenizer):
    for t in (tokenizer, spaced_tokenizer):
        ids = t.encode("The scheduler decides which", add_special_tokens=False)
        assert "".join(t.token_text(i) for i in ids).strip() == "The scheduler decides which"
    assert tokenizer.token_text(2) == "</s>"


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 5}'])
def test_a_malformed_tokenizer_is_named(load, tmp_path, content):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        load(files={"tokenizer.json": content})
    assert str(tmp_path)


def test_a_malformed_configuration_is_named(load):
    with pytest.raises(TokenizerError, match=r"special_tokens_map\.json is not valid JSON"):
        load(files={"special_tokens_map.json": "{"})


@pytest.mark.parametrize("added", [{"x": {}}, {"400": "<x>"}, [5]])
def test_malformed_added_tokens_are_refused(load, added):
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is malformed"):
        load({"added_tokens_decoder": added})


def test_another_configuration_can_be_named(load, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"chat_template": "other", "eos_token": "<|im_end|>"}))
    tokenizer = load(files={"chat_template.jinja": "from the model"}, tokenizer_config_path=other)
    assert (tokenizer.chat_template, tokenizer.eos_token) == ("other", "<|im_end|>")
    with pytest.raises(TokenizerError, match="no such file; check --tokenizer-config-path"):
        load(tokenizer_config_path=tmp_path / "missing.json")


def test_loading_and_encoding_import_no_torch(tmp_path):
    write_tokenizer(tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom tgi_core.weights.source import ModelFiles\n"
        "from tgi_core.tokenizer.tokenizer import load_tokenizer\n"
        f"t = load_tokenizer(ModelFiles('m', Path({str(tmp_path)!r}), (), None, {{}}, {{}}))\n"
        "t.render_chat([{'role': 'user', 'content': t.decode(t.encode('hi'))}])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_backend_is_the_librarys(tokenizer):
    assert isinstance(tokenizer.backend, Backend)
