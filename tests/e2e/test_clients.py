"""Real clients against a real server; each runs in a process, where its pins clash in an environment of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

SCRIPTS = Path(__file__).parent / "clients"


def python_of(client):
    """The interpreter that has the client: TGI_<CLIENT>_PYTHON, else this one."""
    variable = f"TGI_{client.upper()}_PYTHON"
    if python := os.environ.get(variable):
        return python
    if importlib.util.find_spec(client) is None:
        pytest.skip(f"{client} is not installed here; set {variable} to an interpreter that has it")
    return sys.executable


@pytest.mark.timeout(120)
@pytest.mark.parametrize("client", ["huggingface_hub", "openai", "text_generation"])
def test_client(url, client):
    command = [python_of(client), str(SCRIPTS / f"{client}_client.py"), url]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_concurrent_streams_equal_a_single_answer(url):
    body = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 16}}
    text = httpx.post(url + "/generate", json=body, timeout=60).json()["generated_text"]
    with httpx.Client(timeout=60) as client:
        for _ in range(2):
            assert client.post(url + "/generate", json=body).json()["generated_text"] == text


def test_a_long_request_is_refused_with_the_numbers(url):
    most = httpx.get(url + "/info").json()["max_input_tokens"]
    response = httpx.post(url + "/generate", json={"inputs": "word " * (2 * most)}, timeout=60)
    assert response.status_code == 422
    assert f"must have less than {most} tokens" in response.text or "must be <=" in response.text


def test_stop_strings_at_the_end_of_a_token_and_inside(url):
    body = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 16}}
    text = httpx.post(url + "/generate", json=body, timeout=60).json()["generated_text"]
    stop = text[3:5]
    body["parameters"]["stop"] = [stop]
    cut = httpx.post(url + "/generate", json=body, timeout=60).json()["generated_text"]
    assert cut == text[: text.index(stop) + len(stop)]
