"""Engine death, freeze and hang: what clients are told, and what readiness says when."""

import os
import re
import signal
import time

import pytest


def ready(client):
    response = client.get("/readyz")
    return response.status_code, response.json()["state"]


def levels(capsys, path):
    """Of what was logged since the last call about a path."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    return [re.search(r"\[(\w+) *\]", line)[1] for line in lines if f"path={path} " in line]


def test_loading_is_alive_but_not_ready(serve, capsys):
    with serve({"load_s": 1.0}, until=None) as server, server.client() as client:
        server.wait_for("loading")
        assert client.get("/livez").status_code == 200
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["state"] == "loading"
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"error": "unhealthy", "error_type": "healthcheck"})
        assert levels(capsys, "/health") == ["debug"]  # probes ask again and again
        generate = client.post("/generate", json={"inputs": "a"})
        assert generate.status_code == 503
        assert levels(capsys, "/generate") == ["error"]
        assert generate.headers["retry-after"]
        assert generate.json()["error_type"] == "unavailable"
        server.wait_for("ready")
        assert ready(client) == (200, "ready")


@pytest.mark.parametrize("path", ["/generate_stream", "/v1/completions"])
def test_a_killed_engine_ends_every_stream_once_and_comes_back(serve, events, path, wait_until):
    with serve({"steps_per_s": 50}) as server, server.client() as client:
        body = {"inputs": "a", "prompt": "a", "stream": True}
        with client.stream("POST", path, json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(server.supervisor.engine_pid, signal.SIGKILL)
            killed_at = time.monotonic()
            wait_until(lambda: server.service.state != "ready", 1)
            rest = [line for line in lines if line.startswith("data: ")]
        errors = [line for line in rest if '"error"' in line]
        assert len(errors) == 1
        assert "killed by SIGKILL" in errors[0]
        assert rest[-1] == ("data: [DONE]" if path.startswith("/v1") else errors[0])
        assert time.monotonic() - killed_at < 2
        server.wait_for("ready")
        assert server.supervisor.restarts == 1
        answer = client.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 2}})
        assert answer.json() == {"generated_text": "He"}


def test_a_killed_engine_is_a_424_for_what_it_had_begun(serve, wait_until):
    import threading

    with serve({"steps_per_s": 20}) as server, server.client() as client:
        answers = []
        request = threading.Thread(target=lambda: answers.append(client.post("/generate", json={"inputs": "a"})))
        request.start()
        wait_until(lambda: any(stream.started for stream in server.service.client.streams()))
        os.kill(server.supervisor.engine_pid, signal.SIGKILL)
        request.join()
        assert answers[0].status_code == 424
        assert answers[0].json()["error_type"] == "generation"
        assert server.service.client.in_flight == 0


def test_a_frozen_engine_is_seen_and_may_wake_up(serve):
    with serve({}) as server, server.client() as client:
        os.kill(server.supervisor.engine_pid, signal.SIGSTOP)
        frozen_at = time.monotonic()
        try:
            server.wait_for("frozen", 10)
            assert time.monotonic() - frozen_at < 7
            assert ready(client)[0] == 503
            assert client.get("/livez").status_code == 200
            assert client.post("/generate", json={"inputs": "a"}).status_code == 503
        finally:
            os.kill(server.supervisor.engine_pid, signal.SIGCONT)
        server.wait_for("ready", 5)
        assert server.supervisor.restarts == 0


def test_a_step_without_end_turns_readiness_red_then_restarts(serve, events):
    flags = ("--step-deadline", "0.5", "--step-timeout", "1.5")
    with serve({"hang_at_step": 3}, *flags) as server, server.client() as client:
        with client.stream("POST", "/generate_stream", json={"inputs": "a"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.wait_for("stuck", 3)
            rest = [line for line in lines if "error" in line]
        assert len(rest) == 1
        assert "--step-timeout" in rest[0]
        server.wait_for("ready")


def test_an_engine_that_cannot_load_ends_the_server(serve):
    with serve({"fail_load": "weights are torn; download them again"}, until=None) as server:
        server._thread.join(10)
        assert server.status == 3


def test_an_engine_that_dies_again_and_again_ends_the_server(serve, wait_until):
    with serve({}, "--engine-restarts", "1") as server:
        os.kill(server.supervisor.engine_pid, signal.SIGKILL)
        wait_until(lambda: server.supervisor.restarts == 1)
        server.wait_for("ready")
        os.kill(server.supervisor.engine_pid, signal.SIGKILL)
        server._thread.join(10)
        assert server.status == 1
