"""What the host does for a decode step, with a device that takes no time: below this no GPU's step can be.

    python benchmarks/host.py [--rows 1,32,128,256,512] [--profile]

Rows: sequences in the batch.  `step` is the engine's, from the plan to the outputs, in milliseconds, as the median of
100; `message` is what is written to the front for it.  A real engine plans the steps, fills the memory that a recording
reads, and reports its tokens; only the recording itself computes nothing.  `--profile` names the functions that take
longest.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch

from tgi_core import Engine, messages
from tgi_core.config import EngineConfig
from tgi_core.cpu.backend import CpuBackend
from tgi_core.device.torch_gpu import TorchGpu
from tgi_core.request import Request
from tgi_core.runner.graph import GraphRunner
from tgi_core.runner.recorded import RecordedDecode, RecordedStep
from tgi_core.sampling.sampler import Choice
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint
from tgi_core.triton.fixed import FixedDecodes

PROMPT_TOKENS, STEPS, SETTLING_STEPS = 128, 100, 10
CONTEXT = 1024  #: tokens of the longest sequence


class InstantRunner(GraphRunner):
    """Decodes bring the same tokens at once; prompts are called layer by layer."""

    def _recording(self, size: Any) -> RecordedStep | None:
        if size.tokens is not None or not size.chooses:
            return None
        rows = size.rows
        fixed = FixedDecodes(rows, self.slots.blocks_per_sequence, 1, torch.device("cpu"), cross=False)
        decode = RecordedDecode(rows, self.slots, fixed, self.backend, chooses=True)
        decode.choice, decode.replay = Choice(torch.full((rows,), 5), torch.full((rows,), -1.0)), lambda: None
        return decode


def start(folder: str, rows: int) -> Engine:
    """An engine whose `rows` sequences all decode."""
    limits = {"max_batch_size": rows, "max_total_tokens": CONTEXT, "max_batch_total_tokens": rows * CONTEXT}
    engine = Engine(EngineConfig(model_id=folder, device="cpu", **limits))
    params = SamplingParams(max_new_tokens=CONTEXT - PROMPT_TOKENS, ignore_eos=True)
    for number in range(1, rows + 1):
        prompt = [(number + position) % 300 for position in range(PROMPT_TOKENS)]
        engine.add(Request(id=number, prompt_ids=prompt, params=params))
    while engine.stats.decode_tokens < rows:
        engine.step()
    return engine


def times(engine: Engine) -> tuple[list[float], list[float]]:
    """Seconds of each step, and of the message about it."""
    steps, encoding = [], []
    for _ in range(SETTLING_STEPS + STEPS):
        begin = time.perf_counter()
        outputs = engine.step()
        done = time.perf_counter()
        messages.encode(messages.StepDone(outputs, engine.stats))
        steps.append(done - begin)
        encoding.append(time.perf_counter() - done)
    return steps[SETTLING_STEPS:], encoding[SETTLING_STEPS:]


def main() -> None:
    """Print a row for every number of sequences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,32,128,256,512", help="of the batches, with commas between")
    parser.add_argument("--profile", action="store_true", help="also name what takes longest")
    options = parser.parse_args()
    buckets = TorchGpu.capabilities.batch_buckets
    batches = [int(rows) for rows in options.rows.split(",")]
    if max(batches) > buckets[-1]:
        parser.error(f"--rows: decodes of more than {buckets[-1]} rows are not recorded")
    torch.set_num_threads(1)
    CpuBackend.capabilities = replace(CpuBackend.capabilities, asynchronous=True, batch_buckets=buckets)
    CpuBackend.runner = f"{__name__}:InstantRunner"
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, "llama", max_position_embeddings=CONTEXT)
        print("| rows | step | message |\n|---|---|---|")
        for rows in batches:
            engine = start(folder, rows)
            gc.freeze()  # as the engine's process does
            steps, encoding = (1e3 * statistics.median(found) for found in times(engine))
            print(f"| {rows} | {steps:.2f} ms | {encoding:.2f} ms |", flush=True)
            if options.profile:
                with cProfile.Profile() as profile:
                    times(engine)
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            engine.close()


if __name__ == "__main__":
    main()
