"""The edge, with raw sockets: heads, bodies, connections, keys."""

import contextlib
import socket
import time

import pytest

POST = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def server(serve):
    flags = ["--header-timeout", "1", "--body-timeout", "1", "--keep-alive-timeout", "2", "--max-connections", "20"]
    with serve({}, *flags, "--api-key", "s3cret") as server:
        yield server


def exchange(server, data, timeout=6):
    """Send bytes, read until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(timeout)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except (TimeoutError, ConnectionResetError):
            pass
        return received


def status(received):
    return int(received.split(b" ", 2)[1]) if received else None


def test_a_huge_header_is_a_431(server):
    assert status(exchange(server, b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 40_000 + b"\r\n\r\n")) == 431
    assert status(exchange(server, b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 5_000_000)) == 431


def test_many_headers_are_a_431(server):
    fields = b"".join(b"x%d: y\r\n" % i for i in range(101))
    assert (
        status(exchange(server, b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + fields + b"\r\n")) == 431
    )


def test_a_half_head_is_a_408(server):
    started_at = time.monotonic()
    assert status(exchange(server, b"GET /livez HTTP/1.1\r\nhost: x\r\n")) == 408
    assert time.monotonic() - started_at < 3


def test_a_silent_connection_is_closed(server):
    started_at = time.monotonic()
    exchange(server, b"")
    assert time.monotonic() - started_at < 3


def test_a_half_second_head_is_cut_too(server):
    first = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    started_at = time.monotonic()
    received = exchange(server, first + b"GET /livez HTTP/1.1\r\n")
    assert received.count(b"HTTP/1.1 200") == 1
    assert time.monotonic() - started_at < 4


def test_a_slow_body_is_a_408(server):
    key = b"authorization: Bearer s3cret\r\n"
    started_at = time.monotonic()
    assert status(exchange(server, POST + key + b"content-length: 100\r\n\r\n{")) == 408
    assert time.monotonic() - started_at < 3


def test_an_announced_body_above_the_limit_is_refused_unread(server):
    key = b"authorization: Bearer s3cret\r\n"
    assert status(exchange(server, POST + key + b"content-length: 99999999999\r\n\r\n", 1)) == 413


def test_garbage_is_a_400(server):
    assert status(exchange(server, b"\x16\x03\x01 nonsense\r\n\r\n")) == 400


def test_connections_above_the_cap_are_refused(server, wait_until):
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    time.sleep(0.1)
    assert status(exchange(server, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", 1)) == 503
    for connection in held:
        connection.close()
    wait_until(lambda: status(exchange(server, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", 0.3)) == 200)


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/chat_tokenize", "/nope", "//info", "/info/"])
@pytest.mark.parametrize(
    "value", [None, "Bearer wrong", "Bearer S3CRET", "s3cret", "Basic s3cret", "Bearer s3cret x", "Bearer"]
)
def test_without_the_key_nothing_is_answered(server, path, value):
    with server.client() as client:
        response = client.post(path, json={}, headers={} if value is None else {"authorization": value})
        assert response.status_code == 401
        if path.startswith("/v1"):
            assert response.json()["error"]["code"] == "invalid_api_key"
        else:
            assert response.content == b""


def test_with_the_key_or_on_open_paths_all_is_answered(server):
    with server.client() as client:
        for path in ("/", "/health", "/ping", "/livez", "/readyz", "/info", "/metrics", "/v1/models"):
            assert client.get(path).status_code == 200
        for scheme in ("Bearer", "bearer"):
            body = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
            headers = {"authorization": f"{scheme} s3cret"}
            assert client.post("/generate", json=body, headers=headers).status_code == 200


def test_browsers_may_ask(server):
    with server.client() as client:
        headers = {
            "origin": "http://page",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        response = client.options("/v1/chat/completions", headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "*"


def test_small_answers_leave_at_once(server):
    """Nagle's algorithm would add 40 ms to each."""
    with server.client() as client:
        client.get("/livez")
        started_at = time.monotonic()
        for _ in range(10):
            client.get("/readyz")
        assert time.monotonic() - started_at < 0.3
