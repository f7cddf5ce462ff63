import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tgi_core.testing.tiny import TEXT, make_tokenizer, write_tokenizer
from tgi_core.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tgi_core.weights.source import ModelFiles


def byte_level():
    return make_tokenizer()


def metaspace():
    """As Llama 2's: spaces are letters, unknown characters are bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special + alphabet, show_progress=False)
    tokenizer.train_from_iterator([line for line in TEXT.split() for _ in range(3)], trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in special]
    return tokenizers.Tokenizer.from_str(json.dumps(described))


def wordpiece():
    """As BERT's: words and ##pieces, what is unknown is lost."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


KINDS = {"byte_level": byte_level, "metaspace": metaspace, "wordpiece": wordpiece}


@pytest.fixture(scope="session", params=KINDS)
def any_tokenizer(request):
    """A tokenizer of each kind in turn."""
    return Tokenizer(KINDS[request.param]())


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer."""
    return Tokenizer(byte_level())


@pytest.fixture(scope="session")
def spaced_tokenizer():
    """A tokenizer to which spaces are letters."""
    return Tokenizer(metaspace())


@pytest.fixture
def load(tmp_path):
    """Writes a tokenizer folder with changes to tokenizer_config.json and further files, and loads it."""

    def make(config=None, generation_config=None, model_config=None, files=None, **options):
        write_tokenizer(tmp_path)
        path = tmp_path / "tokenizer_config.json"
        merged = json.loads(path.read_text()) | (config or {})
        path.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
        for name, content in (files or {}).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        found = ModelFiles("m", tmp_path, (), None, model_config or {}, generation_config or {})
        return load_tokenizer(found, **options)

    return make
