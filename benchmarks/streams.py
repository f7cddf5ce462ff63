"""Many streams at once to a server over HTTP: tokens/s, time to first token, time between tokens.

    python benchmarks/streams.py --shape 8b
    python benchmarks/streams.py --url http://127.0.0.1:8000 --model NAME

Starts `tgi serve` on random weights of a real shape, or asks a server that runs already (any that has OpenAI's
/v1/completions and takes token ids and `ignore_eos`).  All streams of a row are sent at the same moment, by several
processes, as one cannot read so many.  Tokens/s are those of the answers, from sending to the last token; of several
repeats, after one that counts for nothing, the median.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
from shapes import SHAPES, Shape, words

READY_TIMEOUT_S, ANSWER_TIMEOUT_S = 300, 600
HEAD_START_S = 1.0  #: for all processes to be waiting when the streams begin


class Row(NamedTuple):
    """Streams of one kind."""

    streams: int
    prompt: int
    output: int
    text: bool = False  #: rather than token ids; `prompt` counts words, of two or three tokens

    def __str__(self) -> str:
        kind = " of text" if self.text else ""
        return f"{self.streams} streams{kind}, {self.prompt} + {self.output}"


ROWS = (
    Row(1, 512, 128),
    Row(16, 512, 128),
    Row(64, 512, 128),
    Row(256, 512, 128),
    Row(512, 512, 128),
    Row(64, 40, 256, text=True),
    Row(256, 40, 256, text=True),
    Row(32, 4000, 128),
)


class Stream(NamedTuple):
    """One answer; monotonic seconds."""

    sent: float
    arrivals: list[float]  #: of events with text
    tokens: int


class Target(NamedTuple):
    """Who is asked."""

    url: str
    model: str


def _body(target: Target, prompt: list[int] | str, output: int) -> bytes:
    wish = {
        "model": target.model, "prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return json.dumps(wish).encode()


async def _stream(target: Target, body: bytes) -> Stream:
    """Without a library for HTTP: those for Python take longer for a request than a server does."""
    url = urlsplit(target.url)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-type: application/json\r\n"
    head += f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    sent, arrivals, tokens, rest = time.monotonic(), [], 0, b""
    reader, writer = await asyncio.open_connection(url.hostname, url.port or 80)
    try:
        writer.write(head.encode() + body)
        status, _, headers = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        if status.split()[1:2] != [b"200"]:
            raise RuntimeError(f"{status!r}: {await reader.read()!r}")
        async for piece in _pieces(reader, is_chunked=b"transfer-encoding: chunked" in headers.lower()):
            now = time.monotonic()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if event["choices"]:
                        arrivals.append(now)
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    finally:
        writer.close()
        await writer.wait_closed()
    return Stream(sent, arrivals, tokens)


async def _pieces(reader: asyncio.StreamReader, *, is_chunked: bool) -> AsyncIterator[bytes]:
    """Of an answer as they come (RFC 9112, section 7.1)."""
    while not is_chunked and (piece := await reader.read(1 << 16)):
        yield piece
    while is_chunked and (size := int((await reader.readline()).partition(b";")[0], 16)):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


def ask(target: Target, bodies: list[bytes], begin: float) -> list[Stream]:
    """In a process of its own: all requests at the moment `begin`."""

    async def run() -> list[Stream]:
        if (early := begin - time.monotonic()) < 0:
            raise RuntimeError(f"a process that asks was ready {-early:.2f} s too late: are there too many --clients?")
        await asyncio.sleep(early)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await asyncio.gather(*(_stream(target, body) for body in bodies))

    return asyncio.run(run())


def processes(count: int) -> ProcessPoolExecutor:
    """That ask; all of them are there."""
    context = get_context("spawn")
    all_there = context.Barrier(count)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=all_there.wait, initargs=(READY_TIMEOUT_S,))
    list(pool.map(abs, range(count)))
    return pool


def prompts_of(row: Row, generator: random.Random) -> list[list[int] | str]:
    """New ones every time, so that no prefix is known."""
    if row.text:
        return [" ".join(words(row.prompt, generator)) for _ in range(row.streams)]
    return [[generator.randrange(3, 49000) for _ in range(row.prompt)] for _ in range(row.streams)]


def measure(row: Row, target: Target, pool: ProcessPoolExecutor, clients: int, generator: random.Random) -> list[float]:
    """`figures` of a row."""
    bodies = [_body(target, prompt, row.output) for prompt in prompts_of(row, generator)]
    begin = time.monotonic() + HEAD_START_S
    futures = [pool.submit(ask, target, bodies[i::clients], begin) for i in range(min(clients, len(bodies)))]
    streams = [stream for future in futures for stream in future.result()]
    if short := [stream.tokens for stream in streams if stream.tokens != row.output]:
        raise RuntimeError(f"{row}: {len(short)} answers have not {row.output} tokens but {short[0]}")
    return figures(streams)


def figures(streams: list[Stream]) -> list[float]:
    """Tokens/s; milliseconds to the first token, median; between tokens, median and 99 %."""
    first = [stream.arrivals[0] - stream.sent for stream in streams]
    between = sorted(b - a for stream in streams for a, b in zip(stream.arrivals, stream.arrivals[1:], strict=False))
    seconds = max(stream.arrivals[-1] for stream in streams) - min(stream.sent for stream in streams)
    middle, late = (1e3 * between[int(share * (len(between) - 1))] for share in (0.5, 0.99))
    return [sum(stream.tokens for stream in streams) / seconds, 1e3 * statistics.median(first), middle, late]


@contextlib.contextmanager
def served(folder: Path, extra: list[str]) -> Iterator[Target]:
    """`tgi serve` on a free port; prints how long it took to be ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tgi_server.cli", "serve", "--model-id", str(folder), "--port", str(port),
               "--max-concurrent-requests", "1024", *extra]  # fmt: skip
    started, target = time.monotonic(), Target(f"http://127.0.0.1:{port}", str(folder))
    with tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False) as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while not _is_ready(target.url):
                if server.poll() is not None or time.monotonic() - started > READY_TIMEOUT_S:
                    raise SystemExit(f"the server is not ready:\n{Path(log.name).read_text()[-4000:]}")
                time.sleep(0.05)
            print(f"ready over HTTP after {time.monotonic() - started:.1f} s; its log: {log.name}", flush=True)
            yield target
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(30)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    """Print the rows that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--shape", choices=SHAPES, help="serve random weights of this shape")
    who.add_argument("--url", help="of a server that runs")
    parser.add_argument("--model", default="tgi", help="its name for the model")
    parser.add_argument("--rows", help="numbers of rows, as 0,3; default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settle", type=float, default=0.0, help="seconds without requests after it is ready")
    parser.add_argument("--clients", type=int, default=min(8, os.cpu_count() or 1), help="processes that ask")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tgi-bench")
    args, extra = parser.parse_known_args()
    if args.url and (urlsplit(args.url).scheme, urlsplit(args.url).path.strip("/")) != ("http", ""):
        parser.error("--url takes http://HOST:PORT")
    rows = [ROWS[int(number)] for number in args.rows.split(",")] if args.rows else ROWS
    generator = random.Random(0)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(processes(args.clients))
        if args.url:
            target = Target(args.url, args.model)
        else:
            target = stack.enter_context(served(Shape(args.shape).write(args.folder, _device()), extra))
        time.sleep(args.settle)
        print(f"{'row':34} {'out tok/s':>10} {'ttft ms':>9} {'itl p50':>8} {'p99 ms':>8}")
        for row in rows:
            found = [measure(row, target, pool, args.clients, generator) for _ in range(args.repeats + 1)][1:]
            rate, first, middle, late = (statistics.median(column) for column in zip(*found, strict=True))
            print(f"{row!s:34} {rate:10.0f} {first:9.1f} {middle:8.2f} {late:8.2f}", flush=True)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
