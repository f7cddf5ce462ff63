"""Measures the engine in-process, without any server: what HTTP is compared with.

    python benchmarks/engine.py --model path/to/model

Rows: sequences in the batch, tokens/s over all of them from the first token to the last, as benchmarks/serving.py
counts streams; and milliseconds to the first token of one new 1,024-token prompt and of the same prompt again.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import statistics
import time
from typing import Any

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams

PROMPT_TOKENS, NEW_TOKENS, LONG_PROMPT_TOKENS = 128, 128, 1024
SETTLING_STEPS = 4  #: that are not measured: the first is recorded


class Bench:
    """An engine and the prompts for it."""

    def __init__(self, model: str, **wishes: Any) -> None:
        self.engine = Engine(EngineConfig(model_id=model, device="cpu", **wishes))
        gc.freeze()  # as the engine's process does
        self._ids = itertools.count(1)

    def prompt(self, tokens: int) -> list[int]:
        """A new random prompt."""
        return [random.randrange(100, self.engine.info.vocab_size) for _ in range(tokens)]

    def add(self, prompt: list[int], new_tokens: int) -> int:
        """Queue one greedy request that ignores EOS; its id."""
        params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        request = Request(id=next(self._ids), prompt_ids=prompt, params=params)
        self.engine.add(request)
        return request.id

    def decode_rate(self, sequences: int) -> float:
        """Tokens/s of a batch whose prompts arrive together."""
        for _ in range(sequences):
            self.add(self.prompt(PROMPT_TOKENS), NEW_TOKENS)
        started, tokens = 0.0, 0
        while self.engine.has_work:
            tokens += sum(len(output.token_ids) for output in self.engine.step())
            if tokens and not started:
                started, tokens = time.perf_counter(), 0
        return tokens / (time.perf_counter() - started)

    def decode_steps_s(self, sequences: int, context: int, steps: int) -> list[float]:
        """Seconds of each of so many decode steps, all sequences with about so many tokens before them.

        Raises:
            RuntimeError: so many do not run together.
        """
        waiting = sequences * context // 512  # tokens that the first ones write while the last prompt is read
        new_tokens = steps + SETTLING_STEPS + waiting + 8
        requests = [self.add(self.prompt(context - steps // 2), new_tokens) for _ in range(sequences)]
        times: list[float] = []
        while len(times) < steps + SETTLING_STEPS and self.engine.has_work:
            started = time.perf_counter()
            outputs = self.engine.step()
            if self.engine.stats.kind == "decode" and len(outputs) == sequences:
                times.append(time.perf_counter() - started)
        for request in requests:
            self.engine.abort(request)
        while self.engine.has_work:
            self.engine.step()
        if len(times) < steps + SETTLING_STEPS:
            raise RuntimeError(f"{sequences} sequences of {context} tokens took only {len(times)} steps together")
        return times[SETTLING_STEPS:]

    def first_token_ms(self, prompt: list[int]) -> float:
        """Milliseconds from adding a prompt to its first token."""
        self.add(prompt, 1)
        started = time.perf_counter()
        while self.engine.has_work:
            self.engine.step()
        return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder, .gguf file or hub id; default: the embedded model")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bench = Bench(options.model)
    bench.decode_rate(1)
    for sequences in (1, 8, 16):
        rate = statistics.median(bench.decode_rate(sequences) for _ in range(options.rounds))
        print(f"{sequences:3} sequences: {rate:7.1f} tokens/s")
    prompts = [bench.prompt(LONG_PROMPT_TOKENS) for _ in range(options.rounds)]
    for name in ("new", "cached"):
        print(f"1,024-token prompt, {name}: {statistics.median(map(bench.first_token_ms, prompts)):.1f} ms")


if __name__ == "__main__":
    main()
