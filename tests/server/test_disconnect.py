"""A client that leaves: its request stops at once, streaming or not."""

import json
import socket

import pytest


def send(server, path, body):
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


CHAT = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "a"}),
        ("/generate", {"inputs": "a", "parameters": {"best_of": 2, "do_sample": True}}),
        ("/generate_stream", {"inputs": "a"}),
        ("/", {"inputs": "a", "stream": True}),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True, "n": 3}),
        ("/v1/completions", {"prompt": ["a", "b"], "stream": True}),
        ("/v1/completions", {"prompt": ["a", "b"]}),
    ],
)
def test_the_engine_is_told_to_stop(serve, wait_until, path, body):
    with serve({"steps_per_s": 20}) as server:
        connection = send(server, path, body)
        wait_until(lambda: any(stream.started for stream in server.service.client.streams()))
        connection.close()
        wait_until(lambda: server.service.client.in_flight == 0, 1)
        wait_until(lambda: not server.service.exchanges, 1)
        dropped = server.service.metrics.registry.get_sample_value("tgi_request_failure_total", {"err": "dropped"})
        assert dropped == 1
        assert server.service._permits == 128


def test_a_client_that_does_not_read_is_cut(serve, wait_until):
    with serve({}, "--client-write-timeout", "1", text="x") as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        content = json.dumps({"prompt": ["x"] * 4, "n": 32, "stream": True, "logprobs": 5}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content)
        wait_until(lambda: server.service.exchanges, 5)
        wait_until(lambda: not server.service.exchanges, 20)
        assert server.service.client.in_flight == 0
        aborted = server.service.metrics.registry.get_sample_value(
            "tgi_requests_aborted_total", {"reason": "slow_client"}
        )
        assert aborted == 1
        connection.close()
