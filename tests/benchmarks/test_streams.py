"""The load over HTTP, against a server that answers as it likes."""

import asyncio
import json
from concurrent.futures import Future

import pytest

EVENTS = [
    b'data: {"choices":[{"text":"a"}],"usage":null}\n\n',
    b'data: {"choices":[{"text":"b"}],"usage":null}\n\ndata: {"choices":[{"text":"c"}]}\n\n',
    b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\ndata: [DONE]\n\n',
]


@pytest.fixture
def streams():
    import streams

    return streams


class Here:
    """A pool without processes."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


def serve(answer, use):
    """What `use` gives of the URL of a server that sends these pieces to every request, and the bodies it got."""
    bodies = []

    async def handle(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        bodies.append(json.loads(await reader.readexactly(size)))
        for piece in answer:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    async def run():
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.to_thread(use, f"http://127.0.0.1:{port}")

    return asyncio.run(run()), bodies


def test_tokens_are_counted_wherever_events_are_cut(streams):
    whole = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"".join(EVENTS)
    cut = [whole[i : i + 50] for i in range(0, len(whole), 50)]

    def ask(url):
        target = streams.Target(url, "m")
        return streams.ask(target, [streams._body(target, [1, 2], 3)] * 2, 0.0)

    found, bodies = serve(cut, ask)
    assert [(len(stream.arrivals), stream.tokens) for stream in found] == [(3, 3)] * 2
    assert all(stream.sent < stream.arrivals[0] < stream.arrivals[-1] for stream in found)
    assert (bodies[0]["prompt"], bodies[0]["max_tokens"]) == ([1, 2], 3)


def test_figures_of_a_row(streams, monkeypatch):
    monkeypatch.setattr(streams, "HEAD_START_S", 0.0)
    answer = [b"HTTP/1.1 200 OK\r\n\r\n", *EVENTS]

    def measure(url):
        row = streams.Row(streams=4, prompt=5, output=3)
        return streams.measure(row, streams.Target(url, "m"), Here(), 1, streams.random.Random(0))

    (rate, first, middle, late), bodies = serve(answer, measure)
    assert min(rate, first) > 0
    assert 0 <= middle <= late
    assert len({tuple(body["prompt"]) for body in bodies}) == 4


def test_a_refusal_is_told(streams):
    def ask(url):
        target = streams.Target(url, "m")
        with pytest.raises(RuntimeError, match=r"422.*too long"):
            streams.ask(target, [streams._body(target, "text", 3)], 0.0)

    serve([b"HTTP/1.1 422 Unprocessable\r\n\r\n", b"too long"], ask)
