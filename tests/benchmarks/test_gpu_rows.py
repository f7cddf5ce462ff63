"""What is measured of us and of vLLM are the same rows."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tgi_core.config import EngineConfig

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 32000, "max_position_embeddings": 256,
}  # fmt: skip
LONGEST = SIZES["max_position_embeddings"]


class StubLLM:
    """vLLM's class, as far as it is used, which answers at once."""

    def __init__(self, folder, tensor_parallel_size):
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(
                model_config=SimpleNamespace(max_model_len=LONGEST), scheduler_config=SimpleNamespace(max_num_seqs=4)
            )
        )

    def generate(self, prompts, params, *, use_tqdm):
        answer = SimpleNamespace(token_ids=[5] * params.max_tokens)
        assert all(0 <= token < 32000 for prompt in prompts for token in prompt["prompt_token_ids"])
        return [SimpleNamespace(outputs=[answer]) for _ in prompts]


@pytest.fixture
def scripts_of_rows(scripts, monkeypatch):
    stub = ModuleType("vllm")
    stub.LLM, stub.SamplingParams = StubLLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", stub)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    import gpu
    import gpu_rows
    import vllm_rows

    loads = (gpu_rows.Load(3, 20, 3), gpu_rows.Load(2, 20, 3, sampled=True), gpu_rows.Load(1, LONGEST, 1))
    few = {"BATCHES": (1, 2, 8), "STEPS": 20, "LONG": 100, "EACH": 40, "CACHED": 70, "TAIL": 30, "LOADS": loads}
    for name, value in few.items():
        monkeypatch.setattr(gpu_rows, name, value)
    return gpu, vllm_rows


def test_every_row_has_its_counterpart(scripts_of_rows, tmp_path, capsys):
    gpu, vllm_rows = scripts_of_rows
    peer = vllm_rows.Peer(str(tmp_path), repeats=1, gpus=1)
    for kind in ("decode", "prefill", "batch"):
        getattr(peer, kind)()
    theirs = [json.loads(line)["row"] for line in capsys.readouterr().out.splitlines()]
    shape = gpu.Shape("8b", **SIZES)
    wishes = EngineConfig(device="cpu", dtype="float32", max_batch_size=4)
    beside = dict.fromkeys(theirs, 12.5)
    bench = gpu.Bench(shape, shape.write(tmp_path, "cpu"), gpu.Chip(1e12, 1e14), 1, wishes, beside)
    capsys.readouterr()
    for kind in ("decode", "prefill", "batch"):
        getattr(bench, kind)()
    lines = capsys.readouterr().out.splitlines()
    assert [line[8:52].rstrip() for line in lines] == theirs
    assert all(" 12.50 " in line for line in lines)
    assert "decode step, batch 2, context 32-52" in theirs
    assert "decode step, batch 8, context 32-52" not in theirs  # there are four slots
    assert "time to first token, 70 cached + 30" in theirs
    assert [name for name in theirs if "requests" in name] == [
        "3 requests of 20 + 3, greedy",
        "2 requests of 20 + 3, top-p",
    ]
