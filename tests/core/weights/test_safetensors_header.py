import json
import random

import pytest
from safetensors import safe_open

from tgi_core.errors import WeightsError
from tgi_core.weights.safetensors_header import read_safetensors_header


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_shapes_and_places_are_the_librarys(llama):
    path = llama / "model.safetensors"
    header = read_safetensors_header(path)
    with safe_open(path, "pt") as theirs:
        assert header.keys() == set(theirs.keys())
        assert all(list(header[name].shape) == theirs.get_slice(name).get_shape() for name in theirs.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "unreadable header"),
        (b"[1]", "malformed header"),
        (b"[" * 100_000, "unreadable header"),
        ({"a": 5}, "entry of a is malformed"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "entry of a is malformed"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "entry of a is malformed"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "but stored at bytes 0 to 4"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, "but stored at"),
        ({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, "is truncated: a ends 32 bytes after"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, header, reason):
    with pytest.raises(WeightsError, match=reason):
        read_safetensors_header(write(tmp_path / "x.safetensors", header, bytes(4)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"abc", "not a safetensors file"),
        (b"\xff" * 20, "not a safetensors"),
        (b"\x64" + bytes(9), "header alone has 100"),
    ],
)
def test_something_else_is_refused(tmp_path, content, reason):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read_safetensors_header(path)


def test_damaged_headers_never_crash(llama, tmp_path):
    sound = (llama / "model.safetensors").read_bytes()
    size = 8 + int.from_bytes(sound[:8], "little")
    rng, messages = random.Random(0), []
    path = tmp_path / "x.safetensors"
    for _ in range(500):
        damaged = bytearray(sound)
        for _ in range(rng.choice((1, 3))):
            damaged[rng.randrange(size)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_safetensors_header(path)
        except WeightsError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(str(path) in message for message in messages)
