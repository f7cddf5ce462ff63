"""Filling a model from a checkpoint."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from tgi_core.errors import WeightsError
from tgi_core.testing.tiny import make_checkpoint
from tgi_core.weights.loader import Checkpoint, load_weights
from tgi_core.weights.reader import WeightReader


class Reader(WeightReader):
    """Tensors in memory."""

    def __init__(self, **tensors):
        self.tensors = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        self.names = frozenset(self.tensors)

    def shape(self, name):
        return tuple(self.tensors[name].shape)

    def get(self, name, *, dtype=None, rows=None):
        return self.tensors[name][rows or slice(None)]


class Leaf(nn.Module):
    """Loads one vector of two, and a sibling's if there is one."""

    def load(self, source):
        self.weight = source.read("weight", 2, dtype=torch.float32)
        if source.sibling("other").has("weight"):
            source.sibling("other").copy("weight", self.weight)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Leaf())


def load(**tensors):
    model, fractions = Model(), []
    load_weights(model, Checkpoint(Reader(**tensors), ("model.", "")), fractions.append)
    return model.inner[0].weight.tolist(), fractions


@pytest.mark.parametrize("prefix", ["model__", ""])
def test_names_with_and_without_the_prefix(prefix):
    assert load(**{f"{prefix}inner__0__weight": torch.tensor([1.0, 2.0])}) == ([1.0, 2.0], [1.0])


def test_a_layer_may_read_its_siblings():
    tensors = {"inner__0__weight": torch.zeros(2), "inner__other__weight": torch.ones(2)}
    assert load(**tensors)[0] == [1.0, 1.0]


def test_a_missing_tensor_is_named_with_what_was_tried():
    with pytest.raises(WeightsError, match=r"no tensor model\.inner\.0\.weight or inner\.0\.weight"):
        load(inner__1__weight=torch.zeros(2))


def test_another_shape_is_named():
    with pytest.raises(WeightsError, match=r"inner\.0\.weight has shape \[3\] where config.json asks for \[2\]"):
        load(inner__0__weight=torch.zeros(3))


def test_unused_tensors_are_warned_about_but_for_derived_ones(caplog):
    load(inner__0__weight=torch.zeros(2), rotary_emb__inv_freq=torch.zeros(2), extra=torch.zeros(1))
    assert "1 tensors of the checkpoint are not used: extra" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of /proc")
def test_peak_memory_while_loading_stays_below_1_2_times_the_weights(tmp_path):
    folder = make_checkpoint(
        tmp_path,
        "llama",
        dtype=torch.bfloat16,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=4096,
    )
    size = (folder / "model.safetensors").stat().st_size
    script = f"""
import re, sys
from pathlib import Path
import torch
from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
import numpy, safetensors, tokenizers
before = status("VmRSS")
limits = {{"max_batch_total_tokens": 64, "max_total_tokens": 64}}
engine = Engine(EngineConfig(model_id={str(folder)!r}, device="cpu", dtype="bfloat16", **limits))
print((status("VmHWM") - before) / {size})
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 1.2
