"""`/metrics` against a ledger of what was sent, and the way out under load."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

STREAMS = 64
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
GENERATE = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
LEDGER = [  # path, body, requests, generations that succeed, label of the failure
    ("/generate", GENERATE, 7, 7, ""),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2, "best_of": 2, "do_sample": True}}, 2, 4, ""),
    ("/generate_stream", GENERATE, 5, 5, ""),
    ("/", GENERATE | {"stream": True}, 3, 3, ""),
    ("/v1/chat/completions", CHAT, 4, 4, ""),
    ("/v1/chat/completions", CHAT | {"stream": True, "n": 3}, 2, 6, ""),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1}, 2, 4, ""),
    ("/generate", {"inputs": ""}, 3, 0, "validation"),
    ("/generate_stream", {"inputs": "a", "parameters": {"temperature": 0}}, 2, 0, "validation"),
    ("/v1/chat/completions", CHAT | {"n": 0}, 1, 0, "validation"),
    ("/v1/chat/completions", {"messages": []}, 2, 0, "template"),
    ("/v1/completions", {"prompt": "a", "n": 129}, 1, 0, "validation"),
    ("/generate", {"inputs": 1}, 4, 0, ""),  # malformed: counted as a request only, as TGI does
    ("/tokenize", {"inputs": "a"}, 3, 0, None),  # neither
]


def series(text, name):
    """Values of a metric by its labels."""
    found = re.findall(rf"^{name}(?:{{(.*?)}})? (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def test_metrics_are_the_ledger(serve):
    with serve() as server, server.client() as client:
        for path, body, count, _, _ in LEDGER:
            for _ in range(count):
                client.post(path, json=body)
        text = client.get("/metrics").text
    assert series(text, "tgi_request_count")[""] == sum(row[2] for row in LEDGER if row[4] is not None)
    assert series(text, "tgi_request_success")[""] == sum(row[3] for row in LEDGER)
    failures = {f'err="{label}"': 0 for label in ("validation", "template")}
    for _, _, count, _, label in LEDGER:
        if label:
            failures[f'err="{label}"'] += count
    assert series(text, "tgi_request_failure") == failures
    assert series(text, "tgi_request_duration_count")[""] == series(text, "tgi_request_success")[""]
    assert series(text, "tgi_request_generated_tokens_sum")[""] == sum(
        row[3] * (1 if row[0] == "/v1/completions" else 2) for row in LEDGER
    )


SERVE = """
import sys
from tgi_server.launch import launch
from tgi_server.settings import load_settings
launch(load_settings(sys.argv[1:], {}), engine_module="tgi_core.testing.scripted_engine")
"""


@pytest.fixture
def process(model_folder, tokenizer):
    """`tgi serve` over the scripted engine, as a process of its own, and where it listens."""
    ids = tokenizer.encode("Hello wörld! ", add_special_tokens=False)
    script = {"token_ids": ids, "vocab_size": tokenizer.vocab_size, "eos_id": 1, "steps_per_s": 40}
    flags = ["--model-id", str(model_folder), "--hostname", "127.0.0.1", "--port", "0", "--json-output"]
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, *flags],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TGI_SCRIPT": json.dumps(script)},
    ) as process:
        try:
            for line in process.stdout:
                entry = json.loads(line)
                if entry["message"] == "Ready":
                    yield process, entry["url"]
                    break
            else:
                raise AssertionError("the server did not start")
        finally:
            process.kill()


async def _stream(client, path, body, started):
    texts, is_whole = [], False
    async with client.stream("POST", path, json=body) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                is_whole = True
            elif line.startswith("data: "):
                content = json.loads(line[6:])
                texts.append(content["token"]["text"] if "token" in content else content["choices"][0]["text"])
                is_whole = is_whole or bool(content.get("generated_text"))
                started.add(id(texts))
    return "".join(texts), is_whole


async def test_sigterm_lets_streams_finish_and_refuses_new_ones(process):
    server, url = process
    requests = [
        ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 60}}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 60, "stream": True, "temperature": 0}),
    ]
    started = set()
    async with httpx.AsyncClient(base_url=url, timeout=20, limits=httpx.Limits(max_connections=None)) as client:
        streams = [
            asyncio.create_task(_stream(client, *requests[index % len(requests)], started)) for index in range(STREAMS)
        ]
        while len(started) < STREAMS:
            await asyncio.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert (await client.get("/readyz")).json()["state"] == "draining"
        for path, body in [("/generate", GENERATE), ("/generate_stream", GENERATE), ("/v1/chat/completions", CHAT)]:
            refused = await client.post(path, json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert not any(stream.done() for stream in streams)
        answers = await asyncio.gather(*streams)
    assert all(is_whole for _, is_whole in answers)
    assert len({text for text, _ in answers}) == 1
    assert await asyncio.to_thread(server.wait, 5) == 0


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_engine_outlives_a_killed_front_by_seconds_only(process):
    server, _ = process
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    assert children
    server.kill()
    server.wait()
    deadline = time.monotonic() + 5
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.05)


@pytest.mark.parametrize(("path", "body"), [("/generate", GENERATE), ("/v1/chat/completions", CHAT | {"stream": True})])
def test_a_defect_is_counted_and_tells_the_client_nothing(serve, monkeypatch, path, body):
    with serve() as server, server.client() as client:
        monkeypatch.setattr("tgi_server.generation.Generation._read", lambda *args: 1 / 0)
        response = client.post(path, json=body)
        assert "Internal server error" in response.text
        assert "division" not in response.text
        text = client.get("/metrics").text
    assert series(text, "tgi_request_failure") == {'err="internal"': 1}
