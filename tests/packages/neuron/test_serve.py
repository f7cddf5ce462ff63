"""`tgi serve` on the pretended host, as a process, over HTTP."""

import contextlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import neuron_host
import pytest
from checkpoints import checkpoint, said_by_transformers
from transformers import AutoTokenizer

STANDIN = Path(neuron_host.__file__).parent
TEXTS = ["The capital of France is", "def add(a, b):", "Größe", "a", "Does the sun rise in the east? Yes, and it sets"]


@contextlib.contextmanager
def serving(folder, tmp_path, *flags, **variables):
    root = tmp_path / "host"
    root.mkdir()
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": os.pathsep.join([str(STANDIN), *sys.path]),
        "NEURON_HOST": str(neuron_host.write(root)),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tgi_server.cli", "serve", "--json-output", "--hostname", "127.0.0.1"]
    command += ["--port", "0", "--model-id", str(folder), "--dtype", "float32", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            lines = [json.loads(line) for line in _until_ready(process.stdout)]
            with httpx.Client(base_url=lines[-1]["url"], timeout=60) as client:
                yield client, lines
        finally:
            process.terminate()
            assert process.wait(30) == 0


def _until_ready(lines):
    for line in lines:
        yield line
        if json.loads(line)["message"] == "Ready":
            return
    raise AssertionError("tgi serve ended")


def test_text_generation_inferences_variables_and_both_apis(tmp_path):
    folder = checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(text).input_ids for text in TEXTS]
    expected = said_by_transformers(folder, prompts, 8)
    variables = {"MAX_BATCH_SIZE": "2", "MAX_TOTAL_TOKENS": "64", "HF_NUM_CORES": "1", "HF_AUTO_CAST_TYPE": "fp32"}
    with serving(folder, tmp_path, **variables) as (client, log):
        assert client.get("/info").json()["max_total_tokens"] == 64
        chosen = next(entry for entry in log if entry.get("setting") == "neuron shapes")
        assert chosen["value"] == "2 sequences of 64 tokens, float32, 1 core, sampling on the host"
        parameters = {"max_new_tokens": 8, "details": True, "ignore_eos": True}

        def ask(text):
            return client.post("/generate", json={"inputs": text, "parameters": parameters}).json()

        with ThreadPoolExecutor(len(TEXTS)) as pool:
            answers = list(pool.map(ask, TEXTS))
        for answer, tokens in zip(answers, expected, strict=True):
            found = [token["id"] for token in answer["details"]["tokens"]]
            assert found == tokens[: len(found)]
            assert len(found) == 8 or answer["details"]["finish_reason"] == "eos_token"
        chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "logprobs": True, "temperature": 0}
        choice = client.post("/v1/chat/completions", json=chat).json()["choices"][0]
        assert all(token["logprob"] <= 0 for token in choice["logprobs"]["content"])
        long = client.post("/generate", json={"inputs": "word " * 200, "parameters": {"max_new_tokens": 4}})
        assert (long.status_code, long.json()["error_type"]) == (422, "validation")


@pytest.mark.parametrize("prompt", ["Does the sun rise?"])
def test_a_model_that_samples_on_the_device(tmp_path, prompt):
    folder = checkpoint(tmp_path / "model")
    variables = {"MAX_TOTAL_TOKENS": "64", "TGI_NEURON_SAMPLING": "device"}
    with serving(folder, tmp_path, **variables) as (client, _):
        answer = client.post("/generate", json={"inputs": prompt, "parameters": {"max_new_tokens": 3, "details": True}})
        assert [token["logprob"] for token in answer.json()["details"]["tokens"]] == [None] * 3
        refused = {
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True},
            "/v1/completions": {"prompt": "Hi", "logprobs": 0},
            "/generate": {"inputs": "Hi", "parameters": {"repetition_penalty": 1.2}},
        }
        for path, body in refused.items():
            answer = client.post(path, json=body)
            assert answer.status_code == 422, answer.text
            assert "serve one compiled with TGI_NEURON_SAMPLING=host" in answer.text
        best = {"inputs": "Hi", "parameters": {"best_of": 2, "do_sample": True}}
        assert "`logprobs` is not supported here" in client.post("/generate", json=best).text
