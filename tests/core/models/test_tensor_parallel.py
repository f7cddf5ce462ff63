"""Every family divided over two ranks, against one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tgi_core.testing.tiny import make_checkpoint

RANK = Path(__file__).parent / "rank.py"


def run(size, folders, tmp_path):
    """What every rank prints: [rank][checkpoint]."""
    address = f"file://{tmp_path}/store"
    command = [sys.executable, str(RANK)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size), address, *map(str, folders)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs, errors = zip(*(process.communicate(timeout=300) for process in ranks), strict=True)
    assert [process.returncode for process in ranks] == [0] * size, errors
    assert not [error for error in errors if "not used" in error]  # all ranks read all of a checkpoint
    return [[json.loads(line) for line in output.splitlines()] for output in outputs]


@pytest.mark.slow
def test_two_ranks_equal_one(folders, tmp_path):
    names = [name for name in folders if "rope" not in name]
    (alone,) = run(1, [folders[name] for name in names], tmp_path)
    first, second = run(2, [folders[name] for name in names], tmp_path)
    for name, one, left, right in zip(names, alone, first, second, strict=True):
        assert "error" not in left, (name, left)
        assert left["tokens"] == right["tokens"] == one["tokens"], name
        torch.testing.assert_close(torch.tensor(left["logprobs"]), torch.tensor(one["logprobs"]), rtol=1e-3, atol=1e-3)
        assert left["weights"] < 0.6 * one["weights"], name  # what is repeated stays whole


def test_encoder_decoders_on_two_ranks_equal_one(tmp_path):
    folders = [make_checkpoint(tmp_path / family, family) for family in ("t5", "umt5")]
    (alone,) = run(1, folders, tmp_path)
    for rank in run(2, folders, tmp_path):
        for one, found in zip(alone, rank, strict=True):
            assert found["tokens"] == one["tokens"]
            torch.testing.assert_close(
                torch.tensor(found["logprobs"]), torch.tensor(one["logprobs"]), rtol=1e-4, atol=1e-4
            )


def test_what_is_added_is_summed_at_once(tmp_path):
    several = {
        "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
        "stablelm": {"use_parallel_residual": True},
    }
    layers = {  # sums of each
        "gpt_neox": 1, "falcon": 1, "phi": 1, "gptj": 1, "cohere": 1, "stablelm": 1,
        "llama": 2, "gpt2": 2, "qwen2_moe": 2,
    }  # fmt: skip
    folders = [make_checkpoint(tmp_path / family, family, **several.get(family, {})) for family in layers]
    sequential = make_checkpoint(tmp_path / "sequential", "gpt_neox", use_parallel_residual=False)
    for rank in run(2, [*folders, sequential], tmp_path):
        assert [found["sums"] / 2 for found in rank] == [*layers.values(), 2]


@pytest.mark.slow
def test_key_and_value_heads_are_repeated_on_more_ranks_than_there_are(folders, tmp_path):
    names = ["llama", "olmo2", "cohere, normed heads, biases", "stablelm, normed heads, parallel, biases", "phi3"]
    (alone,) = run(1, [folders[name] for name in names], tmp_path)
    for rank in run(4, [folders[name] for name in names], tmp_path):
        assert [found["tokens"] for found in rank] == [one["tokens"] for one in alone]


def test_what_cannot_be_divided_is_refused(tmp_path):
    odd = make_checkpoint(tmp_path / "odd", "gpt2", n_embd=60, n_head=3)
    groups = make_checkpoint(tmp_path / "groups", "falcon", new_decoder_architecture=True, num_kv_heads=1)
    for rank in run(2, [odd, groups], tmp_path):
        assert "3 attention heads cannot be divided by 2 devices" in rank[0]["error"]
        assert "Falcon's groups of heads cannot be divided further" in rank[1]["error"]
