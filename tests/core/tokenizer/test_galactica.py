"""Sequences that Galactica reads letter by letter."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tgi_core.tokenizer.galactica import MARKER, mark_sequences
from tgi_core.tokenizer.tokenizer import load_tokenizer
from tgi_core.weights.source import ModelFiles

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "[START_REF]", "[END_REF]", "[START_SMILES]", "[END_SMILES]", "<work>")
MOLECULE = "CCCC(=O)CCCC"


@pytest.fixture
def tokenizer(tmp_path):
    """Byte-level BPE with the parts of Galactica's: its special tokens, its marker, and no start token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(MARKER, "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([MOLECULE] * 50, trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return load_tokenizer(ModelFiles("galactica", tmp_path, (), None, {}, {}))


def test_letters_of_a_sequence_are_tokens_of_their_own(tokenizer):
    plain = tokenizer.encode(MOLECULE)
    assert len(plain) < len(MOLECULE)
    ids = tokenizer.encode(f"[START_SMILES]{MOLECULE}[END_SMILES] is")
    assert [tokenizer.decode([i]) for i in ids[1 : 1 + len(MOLECULE)]] == list(MOLECULE)
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"[START_SMILES]{MOLECULE}[END_SMILES] is"


def test_prompt_tokens_survive_and_nothing_is_added(tokenizer):
    ids = tokenizer.encode("[START_REF]a[END_REF]<work>")
    assert [ids[0], ids[-2], ids[-1]] == [tokenizer.token_to_id(t) for t in ("[START_REF]", "[END_REF]", "<work>")]
    assert len(ids) == 4


def test_offsets_are_those_of_the_text_that_was_given(tokenizer):
    text = f"é[START_SMILES]{MOLECULE}[END_SMILES]b"
    spans = tokenizer.encode_with_offsets(text)
    assert [span.id for span in spans] == tokenizer.encode(text)
    letters = spans[-2 - len(MOLECULE) : -2]
    assert "".join(span.text for span in letters) == MOLECULE
    data = text.encode()
    assert all(data[span.start : span.stop].decode() == span.text for span in letters)


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("[START_DNA]AC[END_DNA]", f"[START_DNA]{MARKER}A{MARKER}C{MARKER}[END_DNA]"),
        ("[START_DNA]AC[END_AMINO]", "[START_DNA]AC[END_AMINO]"),
        ("[START_REF]AC[END_REF]", "[START_REF]AC[END_REF]"),
        ("x[START_AMINO][END_AMINO]y", f"x[START_AMINO]{MARKER}[END_AMINO]y"),
        ("", ""),
    ],
)
def test_marks(text, marked):
    found, origin = mark_sequences(text)
    assert found == marked
    assert len(origin) == len(found) + 1
    assert origin == sorted(origin)
    assert origin[-1] == len(text)
