"""Caches of any classes are understood by comparing their shapes."""

from types import SimpleNamespace

import pytest
import torch

from tgi_core.errors import UnsupportedModel
from tgi_core.models.cache_layout import CacheLayout


class Layer:
    """Keys that grow, a state that does not, a constant, and a count of tokens."""

    def __init__(self, rows, length, window=8):
        self.keys = torch.arange(rows * 2 * min(length, window) * 4).reshape(rows, 2, -1, 4).float()
        self.states = {0: torch.full((3, rows), float(length)), 1: None}
        self.window = torch.tensor(window)
        self.seen, self.is_initialized = length, True


def make(rows, length, source=0):
    return SimpleNamespace(layers=[Layer(rows, length), (torch.ones(rows, length, 2), "a name")])


@pytest.fixture
def layout():
    return CacheLayout(make)


def test_bytes_of_sequences_and_tokens(layout):
    assert layout.sequence_bytes == 3 * 4
    assert layout.token_bytes == 2 * 4 * 4 + 2 * 4


def test_join_pads_the_shorter_on_the_left(layout):
    short, long = make(2, 3), make(1, 5)
    keys = short.layers[0].keys, long.layers[0].keys
    joined = layout.join([short, long])
    layer = joined.layers[0]
    assert layer.keys.shape == (3, 2, 5, 4)
    assert torch.equal(layer.keys[:2, :, 2:], keys[0])
    assert not layer.keys[:2, :, :2].any()
    assert torch.equal(layer.keys[2:], keys[1])
    assert layer.states[0].tolist() == [[3.0, 3.0, 5.0]] * 3
    assert layer.states[1] is None
    assert (layer.seen, layer.window.item(), layer.is_initialized) == (5, 8, True)
    assert joined.layers[1][0].shape == (3, 5, 2)
    assert joined.layers[1][1] == "a name"


def test_join_uses_its_caches_up(layout):
    first, second = make(1, 2), make(1, 4)
    layout.join([first, second])
    assert first.layers is None
    assert second.layers is None


def test_select_keeps_rows_and_cuts_padding(layout):
    long, short = make(1, 6), make(2, 3)
    keys = short.layers[0].keys
    chosen = layout.select(layout.join([long, short]), [2], 3)
    assert torch.equal(chosen.layers[0].keys, keys[1:])
    assert chosen.layers[0].states[0].tolist() == [[3.0]] * 3
    assert chosen.layers[0].seen == 3


def test_windows_stay_as_long_as_they_are(layout):
    """A layer that keeps the last 8 tokens only."""
    joined = layout.join([make(1, 20), make(1, 5)])
    assert joined.layers[0].keys.shape == (2, 2, 8, 4)
    assert joined.layers[0].seen == 20
    chosen = layout.select(joined, [0], 20)
    assert chosen.layers[0].keys.shape == (1, 2, 8, 4)


def test_source_tokens_are_padded_apart():
    def with_source(rows, length, source):
        return {"own": torch.ones(rows, length), "cross": torch.ones(rows, source)}

    layout = CacheLayout(with_source, has_source=True)
    assert (layout.token_bytes, layout.source_bytes) == (4, 4)
    joined = layout.join([with_source(1, 3, 9), with_source(2, 5, 4)])
    assert joined["own"].tolist() == [[0, 0, 1, 1, 1], [1] * 5, [1] * 5]
    assert joined["cross"].tolist() == [[1] * 9, [0] * 5 + [1] * 4, [0] * 5 + [1] * 4]
    chosen = layout.select(joined, [1], tokens=5, source=4)
    assert (chosen["own"].shape, chosen["cross"].shape) == ((1, 5), (1, 4))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda rows, length, _: [torch.ones(2 * rows, length)], id="heads and sequences in one dimension"),
        pytest.param(lambda rows, length, _: [torch.ones(rows, 2 * length)], id="two entries a token"),
        pytest.param(lambda rows, length, _: [torch.ones(rows)] * length, id="a tensor a token"),
        pytest.param(lambda rows, length, _: [None if length > 2 else torch.ones(rows)][::-1], id="not always there"),
    ],
)
def test_what_cannot_be_understood_is_refused(make):
    with pytest.raises(UnsupportedModel, match="of its cache"):
        CacheLayout(make)
