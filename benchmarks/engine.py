"""Measures the engine in-process, without any server: what HTTP is compared with.

    python benchmarks/engine.py --model path/to/model

Rows: sequences in the batch, tokens/s over all of them from the first token to the last, as benchmarks/serving.py
counts streams; and milliseconds to the first token of one new 1,024-token prompt and of the same prompt again.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams

PROMPT_TOKENS, NEW_TOKENS, LONG_PROMPT_TOKENS = 128, 128, 1024


class Bench:
    """An engine and the prompts for it."""

    def __init__(self, model: str) -> None:
        self.engine = Engine(EngineConfig(model_id=model, device="cpu"))
        self._ids = itertools.count(1)

    def prompt(self, tokens: int) -> list[int]:
        """A new random prompt."""
        return [random.randrange(100, self.engine.info.vocab_size) for _ in range(tokens)]

    def add(self, prompt: list[int], new_tokens: int) -> None:
        """Queue one greedy request that ignores EOS."""
        params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        self.engine.add(Request(id=next(self._ids), prompt_ids=prompt, params=params))

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
