import random
import struct

import pytest

from tgi_core.errors import TGIError, WeightsError
from tgi_core.weights.gguf_config import llama3_divisors, model_config
from tgi_core.weights.gguf_header import read_gguf_header
from tgi_core.weights.gguf_tokenizer import tokenizer_files


def read_all(path):
    """Everything that happens before a tensor is read."""
    header = read_gguf_header(path)
    model_config(path, header)
    tokenizer_files(path, header.metadata)


def test_two_thousand_damaged_headers_are_refused_or_read_but_never_crash(llama, write_gguf):
    path = write_gguf(llama)
    sound = path.read_bytes()
    header_size = min(tensor.offset for tensor in read_gguf_header(path).tensors.values())
    rng = random.Random(0)
    messages = []
    for _ in range(2000):
        damaged = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2, 8))):
            # half of the damage goes to where counts and types are
            at = rng.randrange(header_size) if rng.random() < 0.5 else rng.choice((8, 16, 24)) + rng.randrange(8)
            damaged[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(damaged[: rng.randrange(len(damaged))] if rng.random() < 0.1 else damaged)
        try:
            read_all(path)
        except TGIError as error:
            messages.append(str(error))
    assert len(messages) > 500
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"GGUF", "goes on after the end"),
        (b"GGML" + bytes(100), "does not start with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors do not fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata pairs do not fit"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + bytes(99), "goes on after the end"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 1 << 61) + bytes(99), "elements do not fit"),
        (b"GGUF" + struct.pack("<IQQQ1sII", 3, 0, 1, 1, b"k", 9, 9) + bytes(99), "elements of type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77) + bytes(99), "unknown type 77"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, content, reason):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read_gguf_header(path)


def test_a_truncated_file_names_the_tensor(llama, write_gguf):
    path = write_gguf(llama)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"does not lie inside the file \(truncated\?\)"):
        read_gguf_header(path)


def test_llama3_divisors_are_transformers_own():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500000.0, **scaling},
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = [500000.0 ** (-i / 128) for i in range(0, 128, 2)]
    expected = [a / b for a, b in zip(plain, frequencies.tolist(), strict=True)]
    assert llama3_divisors(scaling, 500000.0, 128) == pytest.approx(expected, rel=1e-4)
