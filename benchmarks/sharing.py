"""Two servers on one machine, and the front of a busy one.

    python benchmarks/sharing.py

Rows: output tokens/s of one server with 16 streams alone, of two with 16 streams each at the same time, added up; and
how long `GET /livez` takes meanwhile, in milliseconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
from export_default import export
from peers import PEERS
from serving import NEW_TOKENS, PROMPT_TOKENS, Runner, Server, prompt_of, start, whole_rate

STREAMS = 16
PAUSE_S = 0.02  #: between two looks at /livez


def rate(runners: list[Runner], seed: int) -> float:
    """Tokens/s of all of them together, asked at the same time."""
    generator = random.Random(seed)
    prompts = [[prompt_of(PROMPT_TOKENS, generator) for _ in range(STREAMS)] for _ in runners]
    with ThreadPoolExecutor() as pool:
        answers = pool.map(lambda runner, own: runner.ask(own, NEW_TOKENS), runners, prompts)
        return whole_rate([stream for streams in answers for stream in streams])


class Liveness:
    """Asks a server whether it lives, again and again, as long as the context lasts."""

    def __init__(self, url: str) -> None:
        self.url, self.times_ms = url, list[float]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Liveness:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client() as client:
            while not self._stop.wait(PAUSE_S):
                started = time.perf_counter()
                client.get(self.url + "/livez").raise_for_status()
                self.times_ms.append((time.perf_counter() - started) * 1e3)

    def __str__(self) -> str:
        ordered = sorted(self.times_ms)
        found = statistics.median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1]
        return "p50 {:.1f}, p99 {:.1f}, longest {:.1f}".format(*found) + f" of {len(ordered)}"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "tgi-benchmark"
    folder.mkdir(exist_ok=True)
    model = export(folder / "default-model")
    with ExitStack() as stack:
        runners = [start(PEERS["tgi"], model, folder / f"sharing-{n}.log", stack)[0] for n in range(2)]
        assert isinstance(runners[0], Server)
        for name, asked in (("one server", runners[:1]), ("two servers", runners)):
            with Liveness(runners[0].url) as liveness:
                found = [rate(asked, seed) for seed in range(options.rounds)]
            print(f"{name:12} {statistics.median(found):7.1f} tokens/s   /livez ms: {liveness}")


if __name__ == "__main__":
    main()
