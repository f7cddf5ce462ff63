"""`tgi serve` on the stand-in: over HTTP, with what was compiled written down."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

BUCKETS = {"BATCH_BUCKET_SIZE": "2", "PREFILL_BATCH_BUCKET_SIZE": "2", "PAD_SEQUENCE_TO_MULTIPLE_OF": "16"}
LIMITS = ("--max-input-tokens", "40", "--max-total-tokens", "96", "--max-batch-size", "4", "--dtype", "float32")
TEXTS = ("The capital of France is", "one two three", "The scheduler decides which sequences run", "1, 2, 3")


@pytest.fixture(params=["llama", "starcoder"])
def server(request, checkpoints, tmp_path):
    """(base URL, folder of the model, what was compiled, what the server wrote)"""
    book, log, folder = tmp_path / "book", tmp_path / "log", checkpoints[0] / request.param
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **BUCKETS, "OMP_NUM_THREADS": "1", "HABANA_STANDIN_BOOK": str(book)}
    command = [sys.executable, "-m", "tgi_server.cli", "serve", "--model-id", str(folder), "--port", str(port), *LIMITS]
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process, log)
            yield url, folder, book, log
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url, process, log):
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        time.sleep(0.5)
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            continue
    raise AssertionError(log.read_text())


def test_texts_are_those_of_the_cpu_in_shapes_that_were_compiled_before(server):
    url, folder, book, log = server
    before = book.read_text().splitlines()
    assert len(before) == len(set(before)) >= 6
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(generate, url, text, 10 + 7 * index) for index, text in enumerate(TEXTS)]
        found = [job.result() for job in jobs]
    assert found == on_cpu(folder)
    assert book.read_text().splitlines() == before
    assert re.search(r"1 of \d+ shapes.* phase=warmup", log.read_text())


def generate(url, text, length):
    parameters = {"max_new_tokens": length, "details": True}
    answer = httpx.post(f"{url}/generate", json={"inputs": text, "parameters": parameters}, timeout=60).json()
    return [token["id"] for token in answer["details"]["tokens"]]


def on_cpu(folder):
    """What the CPU says, in a process whose tensors say where they are."""
    code = f"""
import json
from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.sampling_params import SamplingParams
engine = Engine(EngineConfig(model_id={str(folder)!r}, device="cpu", dtype="float32"))
params = [SamplingParams(max_new_tokens=10 + 7 * index) for index in range({len(TEXTS)})]
done = [engine.generate([text], each)[0] for text, each in zip({TEXTS!r}, params)]
print(json.dumps([each.token_ids for each in done]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])
