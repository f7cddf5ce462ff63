import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, trainers

from tgi_core.errors import TokenizerError, WeightsError
from tgi_core.testing.tiny import TEXT, make_tokenizer
from tgi_core.weights.gguf_tokenizer import tokenizer_files
from tgi_core.weights.source import resolve_model

TEXTS = [
    "The scheduler decides.",
    " two  spaces\n\n",
    "naïve 你好 🎉 1234",
    "I'm fine; they'LL see",
    "<s>x</s><|im_end|>",
]


def rebuild(metadata):
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_files("x.gguf", metadata)["tokenizer.json"]))


def byte_level(**more):
    tokenizer = make_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(vocabulary) - 5),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }


@pytest.mark.parametrize("text", TEXTS)
def test_a_byte_level_vocabulary_gives_the_same_ids(text):
    assert rebuild(byte_level()).encode(text).ids == make_tokenizer().encode(text).ids


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["x", "Ġ1234", "!", "Ġ'", "LL"]),
        ("smollm", ["x", "Ġ", "1", "2", "3", "4", "!", "Ġ'", "LL"]),
        ("llama-bpe", ["x", "Ġ", "123", "4", "!", "Ġ'", "LL"]),
        ("qwen2", ["x", "Ġ", "1", "2", "3", "4", "!", "Ġ'", "LL"]),
    ],
)
def test_text_is_cut_as_the_pre_tokenizer_says(pre, pieces):
    rebuilt = rebuild(byte_level(**{"tokenizer.ggml.pre": pre}))
    assert [piece for piece, _ in rebuilt.pre_tokenizer.pre_tokenize_str("x 1234! 'LL")] == pieces


def test_an_unknown_pre_tokenizer_is_refused():
    with pytest.raises(TokenizerError, match="pre-tokenizer 'martian' is not known"):
        rebuild(byte_level(**{"tokenizer.ggml.pre": "martian"}))


def test_start_and_end_are_added_when_the_file_says_so():
    rebuilt = rebuild(byte_level(**{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}))
    ids = rebuilt.encode("The").ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert rebuilt.encode("The", add_special_tokens=False).ids == ids[1:-1]


def sentencepiece(**more):
    """A vocabulary as sentencepiece stores it, and the tokenizer that it stands for."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([line for line in TEXT.split() for _ in range(3)], trainer)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }
    return tokenizer, metadata


@pytest.mark.parametrize("text", TEXTS[:4])
def test_a_sentencepiece_vocabulary_gives_every_text_back(text):
    _, metadata = sentencepiece()
    rebuilt = rebuild(metadata)
    ids = rebuilt.encode(text).ids
    assert ids[0] == 1  # sentencepiece models start with BOS unless they say otherwise
    assert rebuilt.decode(ids) == text


def test_a_sentencepiece_vocabulary_merges_as_it_was_trained():
    original, metadata = sentencepiece()
    rebuilt = rebuild(metadata)
    for text in ("The", "scheduler", "sequences run in the next step"):
        assert rebuilt.encode(text, add_special_tokens=False).ids == original.encode(text).ids


def test_no_space_is_put_before_the_text_when_the_file_says_so():
    _, metadata = sentencepiece(**{"tokenizer.ggml.add_space_prefix": False})
    rebuilt = rebuild(metadata)
    ids = rebuilt.encode(" The", add_special_tokens=False).ids
    assert rebuilt.decode(ids) == " The"
    assert rebuilt.id_to_token(rebuilt.encode("The", add_special_tokens=False).ids[0])[0] == "T"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.model": "t5"}, "a tokenizer of kind 't5'"),
        ({"tokenizer.ggml.tokens": []}, "not a list of strings"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "not a list of strings"),
        ({"tokenizer.ggml.token_type": [1]}, "does not fit the tokens"),
        ({"tokenizer.ggml.eos_token_id": 10**9}, "eos token 1000000000 is not in the vocabulary"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "not a list of pairs"),
    ],
)
def test_a_malformed_vocabulary_is_refused(change, reason):
    with pytest.raises(TokenizerError, match=reason):
        tokenizer_files("x.gguf", byte_level(**change))


def test_the_chat_template_is_taken_over(llama, write_gguf):
    files = resolve_model(str(write_gguf(llama, chat_template="{{ bos_token }}")))
    config = json.loads((files.folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ bos_token }}"
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")


def test_named_chat_templates_are_taken_over():
    templates = {"tokenizer.chat_template": "a", "tokenizer.chat_templates": ["tool_use"]}
    metadata = byte_level(**templates, **{"tokenizer.chat_template.tool_use": "b"})
    assert tokenizer_files("x", metadata)["tokenizer_config.json"]["chat_template"] == [
        {"name": "tool_use", "template": "b"},
        {"name": "default", "template": "a"},
    ]


def test_metadata_of_the_wrong_type_is_refused(llama, write_gguf, monkeypatch):
    path = write_gguf(llama)
    monkeypatch.setattr("tgi_core.weights.gguf_files.tokenizer_files", lambda path, metadata: {}["missing"])
    with pytest.raises(WeightsError, match="its metadata is malformed"):
        resolve_model(str(path))
