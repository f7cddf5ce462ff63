"""`tgi` as a process: quick help, quick refusals, orderly ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from tgi_server import __version__


def tgi(*arguments, **environ):
    command = [sys.executable, "-m", "tgi_server.cli", *arguments]
    env = {**os.environ, **environ}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=30, check=False)


def test_help_lists_the_commands():
    result = tgi("--help")
    assert result.returncode == 0
    for name in ("serve", "plugins", "kernels", "models", "doctor", "config", "version"):
        assert name in result.stdout


def test_help_of_serve_lists_flags_and_variables():
    result = tgi("serve", "--help")
    assert "--max-concurrent-requests" in result.stdout
    assert "MAX_CONCURRENT_REQUESTS" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve", "--modle-id", "x"], "did you mean --model-id?"),
        (["serve", "--num-shard", "0"], "--num-shard: input should be greater than or equal to 1"),
        (["serv"], "did you mean serve?"),
        (["--hlep"], "--hlep"),
    ],
)
def test_refusals_are_quick_and_without_traceback(arguments, expected):
    result = tgi(*arguments)
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_kernels_of_a_device_by_option_and_variable():
    for arguments, environ in ((["--device", "nonesuch"], {}), ([], {"TGI_DEVICE": "nonesuch"})):
        result = tgi("kernels", "--model", "/nowhere/at/all", *arguments, **environ)
        assert result.returncode == 1
        assert "nonesuch" in result.stderr


def test_config_show_names_sources():
    result = tgi("config", "show", "--sources", "--port", "5", MAX_BEST_OF="3", TGI_DEVICE="cpu")
    assert "port = 5  # --port" in result.stdout
    assert "max_best_of = 3  # MAX_BEST_OF" in result.stdout
    assert "device = cpu  # TGI_DEVICE" in result.stdout


def test_a_taken_port_is_an_error_before_anything_loads():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = tgi("serve", "--hostname", "127.0.0.1", "--port", str(port))
    assert result.returncode == 1
    assert f"127.0.0.1:{port} is in use" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["version"], ["config", "show"]])
def test_no_command_line_answer_imports_torch(arguments):
    code = f"import sys; sys.argv = ['tgi', *{arguments!r}]\nfrom tgi_server.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "assert not {'torch', 'transformers', 'uvicorn'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


SERVE = """
import sys
from tgi_server.launch import launch
from tgi_server.settings import load_settings
launch(load_settings(sys.argv[1:], {}), engine_module="tgi_core.testing.scripted_engine")
"""


@pytest.fixture
def start(model_folder, tokenizer):
    processes = []

    def begin(script=None, *flags):
        facts = {"token_ids": tokenizer.encode("Hi "), "vocab_size": tokenizer.vocab_size, **(script or {})}
        arguments = ["--model-id", str(model_folder), "--hostname", "127.0.0.1", "--port", "0", "--json-output", *flags]
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TGI_SCRIPT": json.dumps(facts)},
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for_line(process, message):
    for line in process.stdout:
        entry = json.loads(line)
        if entry["message"] == message:
            return entry
    raise AssertionError(f"no line {message!r}; exit status {process.wait()}")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pid):
    deadline = time.monotonic() + 5
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_lets_running_requests_finish(start):
    process = start({"steps_per_s": 20})
    url = wait_for_line(process, "Ready")["url"]
    body = {"inputs": "a", "parameters": {"max_new_tokens": 20}}
    with httpx.stream("POST", url + "/generate_stream", json=body, timeout=20) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        wait_for_line(process, "signal received, starting graceful shutdown")
        assert httpx.get(url + "/readyz").json() == {"state": "draining"}
        assert httpx.post(url + "/generate", json=body).status_code == 503
        events = [line for line in lines if line.startswith("data:")]
    assert len(events) == 19
    assert process.wait(5) == 0


def test_the_shutdown_timeout_cuts_streams_with_an_error(start):
    process = start({"steps_per_s": 5}, "--shutdown-timeout", "0.5")
    url = wait_for_line(process, "Ready")["url"]
    with httpx.stream("POST", url + "/v1/completions", json={"prompt": "a", "stream": True}, timeout=20) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        events = [line for line in lines if line.startswith("data:")]
    assert "the server is shutting down" in events[-2]
    assert events[-1] == "data: [DONE]"
    assert process.wait(4) == 0


def test_a_second_signal_ends_at_once(start):
    process = start({"steps_per_s": 1})
    url = wait_for_line(process, "Ready")["url"]
    [engine] = children(process.pid)
    with httpx.stream("POST", url + "/generate_stream", json={"inputs": "a"}, timeout=20):
        process.send_signal(signal.SIGTERM)
        wait_for_line(process, "signal received, starting graceful shutdown")
        process.send_signal(signal.SIGINT)
        assert process.wait(2) == 1
    wait_for_end(engine)


@pytest.mark.parametrize("load_s", [0, 30])
def test_no_engine_outlives_a_killed_front(start, load_s):
    process = start({"load_s": load_s})
    wait_for_line(process, "Listening" if load_s else "Ready")
    [engine] = children(process.pid)
    process.kill()
    process.wait()
    wait_for_end(engine)


def test_sigterm_while_loading_exits_with_0(start):
    process = start({"load_s": 30})
    wait_for_line(process, "Listening")
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0


@pytest.mark.parametrize("delay_s", [0.15, 0.3, 0.45, 0.6])
def test_sigterm_at_any_moment_of_the_start_exits_with_0(start, delay_s):
    process = start({"load_s": 30})
    time.sleep(delay_s)
    engines = children(process.pid)
    process.send_signal(signal.SIGTERM)
    status = process.wait(5)
    assert status == 0 or not engines
    for engine in engines:
        wait_for_end(engine)


def test_the_front_is_small_and_has_no_torch(start):
    process = start()
    wait_for_line(process, "Ready")
    with open(f"/proc/{process.pid}/status") as file:
        [resident_kib] = [int(line.split()[1]) for line in file if line.startswith("VmRSS")]
    assert resident_kib < 120 * 1024
    with open(f"/proc/{process.pid}/maps") as file:
        assert "libtorch" not in file.read()


def test_every_request_is_a_line_with_its_times(start):
    process = start()
    url = wait_for_line(process, "Ready")["url"]
    httpx.post(url + "/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 2}})
    entry = wait_for_line(process, "Success")
    for name in ("total_time", "validation_time", "queue_time", "inference_time", "time_per_token", "seed"):
        assert name in entry
    assert entry["level"] == "info"


def test_a_log_that_nobody_reads_does_not_stop_the_server(start):
    process = start()
    url = wait_for_line(process, "Ready")["url"]
    body = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
    with httpx.Client(timeout=5) as client:
        for _ in range(600):  # about 200 KiB of log, into a pipe that holds 64
            assert client.post(url + "/generate", json=body).status_code == 200
    process.terminate()
    assert process.wait(5) == 0


@pytest.mark.parametrize("command", ["tgi_server.cli", "tgi_server.cli serve"])
def test_the_version_is_an_option_too(command):
    module, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"tgi {__version__}")
