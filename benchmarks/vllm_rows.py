"""The rows of `gpu.py` with vLLM, in whatever interpreter has it: prints a line of JSON for each.

    PYTHON benchmarks/vllm_rows.py FOLDER --rows decode,prefill,batch --repeats 3

`gpu.py --vllm PYTHON` calls this and prints the figures beside its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import gpu_rows as rows
from vllm import LLM, SamplingParams


class Peer:
    """One model in vLLM, with the settings that it chooses itself."""

    def __init__(self, folder: str, repeats: int, gpus: int) -> None:
        self.llm = LLM(folder, tensor_parallel_size=gpus)
        config = self.llm.llm_engine.vllm_config
        self.longest, self.most = config.model_config.max_model_len, config.scheduler_config.max_num_seqs
        self.repeats, self._numbers = repeats, itertools.count(1)

    def row(self, name: str, measured: Callable[[], float]) -> None:
        """The median of the repeats, after one that counts for nothing."""
        measured()
        value = statistics.median(measured() for _ in range(self.repeats))
        print(json.dumps({"row": name, "value": value}), flush=True)

    def seconds(self, count: int, prompt: int, output: int, *, sampled: bool = False, prefix: int = 0) -> float:
        """To answer so many new prompts, which begin with the same `prefix` tokens."""
        how = rows.SAMPLED if sampled else {"temperature": 0}
        params = SamplingParams(max_tokens=output, ignore_eos=True, detokenize=False, **how)
        begin = rows.prompt_ids(0, prefix)
        ids = [begin + rows.prompt_ids(next(self._numbers), prompt) for _ in range(count)]
        started = time.perf_counter()
        found = self.llm.generate([{"prompt_token_ids": each} for each in ids], params, use_tqdm=False)
        elapsed = time.perf_counter() - started
        if short := [answer for answer in found if len(answer.outputs[0].token_ids) != output]:
            raise RuntimeError(f"{len(short)} answers have not {output} tokens")
        return elapsed

    def step(self, batch: int, first: int, steps: int) -> float:
        """Milliseconds of a decode: what long answers take more than short ones, as steps cannot be told apart here."""
        return (
            1e3
            * (self.seconds(batch, first, steps) - self.seconds(batch, first, rows.SKIPPED))
            / (steps - rows.SKIPPED)
        )

    def decode(self) -> None:
        for batch in (size for size in rows.BATCHES if size <= self.most):
            self.row(rows.decode_row(batch), lambda batch=batch: self.step(batch, rows.FIRST, rows.STEPS))
        if self.longest - 1 > rows.LONG + rows.STEPS:
            self.row(rows.long_decode_row(rows.LONG), lambda: self.step(1, rows.LONG, rows.STEPS // 2))

    def prefill(self) -> None:
        each = min(rows.EACH, self.longest - 1)
        for tokens in rows.prompts_of_first_tokens(self.longest - 1):
            self.row(rows.first_token_row(tokens), lambda tokens=tokens: 1e3 * self.seconds(1, tokens, 1))
        if self.longest - 1 > rows.CACHED + rows.TAIL:
            self.row(rows.cached_row(), lambda: 1e3 * self.seconds(1, rows.TAIL, 1, prefix=rows.CACHED))
        self.row(rows.prefill_row(each), lambda: 8 * each / self.seconds(8, each, 1))

    def batch(self) -> None:
        for load in rows.LOADS:
            if load.prompt + load.output <= self.longest:
                count, prompt, output, sampled = load
                self.row(
                    str(load),
                    lambda count=count, prompt=prompt, output=output, sampled=sampled: (
                        count * output / self.seconds(count, prompt, output, sampled=sampled)
                    ),
                )


def main() -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rows", default="decode,prefill,batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-shard", type=int, default=1)
    args = parser.parse_args()
    peer = Peer(args.folder, args.repeats, args.num_shard)
    for row in filter(None, args.rows.split(",")):
        getattr(peer, row)()


if __name__ == "__main__":
    main()
