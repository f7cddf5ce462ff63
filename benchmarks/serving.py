"""Compares servers on this machine: one after the other, the same model, the same requests, over HTTP streams.

    python benchmarks/serving.py --peers tgi transformers --rounds 3

Rows: start (seconds from process start to ready), memory (GiB of the process tree's private and shared memory after all
runs), single (decode tokens/s of one stream, first token excluded), and for 8 and 16 streams tokens/s over all of them
from first to last token; ttft (milliseconds to the first token of a new 1,024-token prompt) and cached (the same prompt
again).  Medians over rounds; the machine should do nothing else.
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
from collections.abc import Iterable
from pathlib import Path

import httpx
import psutil
from export_default import export
from peers import PEERS, Peer

READY_TIMEOUT_S = 300
PROMPT_TOKENS, NEW_TOKENS, LONG_PROMPT_TOKENS = 128, 128, 1024
WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
]


class Server:
    """One peer while it runs."""

    def __init__(self, peer: Peer, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.model, self.peer = str(model), peer
        self.url = f"http://127.0.0.1:{self.port}"
        command = [part.format(model=model, port=self.port) for part in peer.command]
        self._log = log.open("wb")
        self._started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True)

    def wait_ready(self) -> float:
        """Seconds from the process's start until it says that it is ready."""
        while time.monotonic() - self._started < READY_TIMEOUT_S:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.peer.name} ended with {self.process.returncode}; see {self._log.name}")
            try:
                if httpx.get(self.url + self.peer.ready_path).status_code == 200:
                    return time.monotonic() - self._started
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise SystemExit(f"{self.peer.name} is not ready after {READY_TIMEOUT_S} s; see {self._log.name}")

    def memory_gib(self) -> float:
        """Resident memory of the process and its children."""
        tree = [psutil.Process(self.process.pid)]
        tree += tree[0].children(recursive=True)
        return sum(process.memory_info().rss for process in tree) / 2**30

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._log.close()


async def stream(client: httpx.AsyncClient, server: Server, prompt: str, new_tokens: int) -> list[float]:
    """The arrival times of one stream's tokens; the request's own time comes first."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": new_tokens,
        "temperature": 0,
        "stream": True,
    }
    times = [time.perf_counter()]
    async with client.stream("POST", server.url + "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    times.append(time.perf_counter())
    return times


def prompt_of(tokens: int) -> str:
    """A new prompt of about so many tokens that asks for a long answer."""
    return "Write a very long story with these words: " + " ".join(random.choice(WORDS) for _ in range(tokens - 45))


async def measure(server: Server) -> dict[str, float]:
    """One round."""
    figures = {}
    async with httpx.AsyncClient(timeout=600) as client:
        times = await stream(client, server, prompt_of(PROMPT_TOKENS), NEW_TOKENS)
        figures["single tok/s"] = (len(times) - 2) / (times[-1] - times[1])
        for streams in (8, 16):
            prompts = [prompt_of(PROMPT_TOKENS) for _ in range(streams)]
            runs = await asyncio.gather(*(stream(client, server, prompt, NEW_TOKENS) for prompt in prompts))
            first, last = min(times[1] for times in runs), max(times[-1] for times in runs)
            figures[f"{streams} streams tok/s"] = sum(len(times) - 1 for times in runs) / (last - first)
        long_prompt = prompt_of(LONG_PROMPT_TOKENS)
        for name in ("ttft 1024 ms", "cached 1024 ms"):
            times = await stream(client, server, long_prompt, 2)
            figures[name] = (times[1] - times[0]) * 1e3
    return figures


def run(peer: Peer, model: Path, rounds: int, log: Path) -> dict[str, float]:
    """Medians of one peer."""
    server = Server(peer, model, log)
    try:
        start = server.wait_ready()
        asyncio.run(warm_up(server))
        found = [asyncio.run(measure(server)) for _ in range(rounds)]
        figures = {name: statistics.median(figures[name] for figures in found) for name in found[0]}
        return {"start s": start, "memory GiB": server.memory_gib(), **figures}
    finally:
        server.stop()


async def warm_up(server: Server) -> None:
    """One short stream, so that lazy loading is not measured."""
    async with httpx.AsyncClient(timeout=600) as client:
        await stream(client, server, "Hello", 8)


def print_table(results: dict[str, dict[str, float]]) -> None:
    """Peers as rows."""
    names: Iterable[str] = next(iter(results.values()))
    print("| peer | " + " | ".join(names) + " |")
    print("|---|" + "---|" * len(list(names)))
    for peer, figures in results.items():
        print(f"| {peer} | " + " | ".join(f"{value:.4g}" for value in figures.values()) + " |", flush=True)


def main() -> None:
    """Run every peer and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["tgi", "transformers"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default: the embedded model in bfloat16")
    options = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "tgi-benchmark"
    folder.mkdir(exist_ok=True)
    model = options.model or export(folder / "default-model")
    results = {name: run(PEERS[name], model, options.rounds, folder / f"{name}.log") for name in options.peers}
    print_table(results)


if __name__ == "__main__":
    sys.exit(main())
