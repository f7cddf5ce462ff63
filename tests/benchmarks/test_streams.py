"""The load over HTTP, against a server that answers as it likes."""

import asyncio
import json
import time
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
    bodies, answers = [], []

    async def handle(reader, writer):
        answers.append(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        bodies.append(json.loads(await reader.readexactly(size)))
        for piece in answer:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()

    async def run():
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            found = await asyncio.to_thread(use, f"http://127.0.0.1:{port}")
            await asyncio.gather(*answers)
            return found

    return asyncio.run(run()), bodies


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


def chunked(data, size):
    """As servers send what has no length, in chunks that may end within an event."""
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


@pytest.mark.parametrize("cut", [7, 50, 1000])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_tokens_are_counted_wherever_events_are_cut(streams, is_chunked, cut):
    data = b"".join(EVENTS)
    whole = HEAD + (b"Transfer-Encoding: chunked\r\n\r\n" + chunked(data, 31) if is_chunked else b"\r\n" + data)

    def ask(url):
        target = streams.Target(url, "m")
        return streams.ask(target, [streams._body(target, [1, 2], 3)] * 2, time.monotonic() + 0.2)

    found, bodies = serve([whole[i : i + cut] for i in range(0, len(whole), cut)], ask)
    assert [(len(stream.arrivals), stream.tokens) for stream in found] == [(3, 3)] * 2
    assert all(stream.sent < stream.arrivals[0] <= stream.arrivals[-1] for stream in found)
    assert (bodies[0]["prompt"], bodies[0]["max_tokens"]) == ([1, 2], 3)


def test_figures_count_from_sending(streams):
    even = streams.Stream(10.0, [11.0 + i / 100 for i in range(101)], 101)
    late = streams.Stream(10.5, [12.5, 12.6, 12.7, 13.0], 4)
    rate, first, middle, slow = streams.figures([even, late])
    assert rate == pytest.approx(105 / 3.0)
    assert first == pytest.approx(1500)
    assert middle == pytest.approx(10)
    assert slow == pytest.approx(100)


def test_a_row_has_new_prompts_every_time(streams, monkeypatch):
    monkeypatch.setattr(streams, "HEAD_START_S", 0.2)
    row, generator = streams.Row(streams=4, prompt=5, output=3), streams.random.Random(0)

    def measure(url):
        return [streams.measure(row, streams.Target(url, "m"), Here(), 1, generator) for _ in range(2)]

    _, bodies = serve([HEAD + b"\r\n", *EVENTS], measure)
    assert len({tuple(body["prompt"]) for body in bodies}) == 8


def test_a_refusal_is_told(streams):
    def ask(url):
        target = streams.Target(url, "m")
        with pytest.raises(RuntimeError, match=r"422.*too long"):
            streams.ask(target, [streams._body(target, "text", 3)], time.monotonic() + 0.2)

    serve([b"HTTP/1.1 422 Unprocessable\r\n\r\n", b"too long"], ask)


def test_answers_that_end_early_are_told(streams, monkeypatch):
    monkeypatch.setattr(streams, "HEAD_START_S", 0.2)
    row = streams.Row(streams=4, prompt=5, output=9)

    def measure(url):
        with pytest.raises(RuntimeError, match="4 answers have not 9 tokens but 3"):
            streams.measure(row, streams.Target(url, "m"), Here(), 1, streams.random.Random(0))

    serve([HEAD + b"\r\n", *EVENTS], measure)


def test_a_process_that_is_late_is_told(streams):
    with pytest.raises(RuntimeError, match="too late"):
        streams.ask(streams.Target("http://127.0.0.1:1", "m"), [], time.monotonic() - 1)


def test_all_processes_that_ask_are_there_before_the_first_row(streams):
    with streams.processes(2) as pool:
        assert len(pool._processes) == 2
        assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
