"""Speed of the engine on a GPU, with random weights of real shapes, beside what memory and matrix units allow.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --shape 8b --rows decode,prefill,batch --profile 32
    python benchmarks/gpu.py --shape 8b --num-shard 2
    python benchmarks/gpu.py --shape 8b --rows decode,prefill --deterministic
    python benchmarks/gpu.py --shape 8b --rows decode,batch --kv-cache-dtype fp8_e4m3fn
    python benchmarks/gpu.py --shape 8b --rows decode,prefill --quantize int4
    python benchmarks/gpu.py --vllm ~/vllm/bin/python

The first one runs all rows.  --vllm names an interpreter that has vLLM, whose figures come beside ours; where this one
has it, that is not needed.  Both begin to count when the requests are handed over.  What --deterministic costs is the
difference to the same rows without it.

With --num-shard, limits are those of one GPU divided by the number of GPUs, without what they say to each other.

Weights are written once, as safetensors, into --folder; nothing is downloaded.  `streams.py` measures a server.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import gpu_rows as rows
import msgspec
import torch
from shapes import SHAPES, Shape

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams

#: --quantize -> bytes of a weight, with steps and offsets; int4's head is int8, of the 8B shape 3 % of all
WEIGHT_BYTES = {None: 2.0, "int8": 1.0, "int4": 4.5 / 8}


class Chip(NamedTuple):
    """Measured, not quoted."""

    bytes_per_s: float
    flop_per_s: float

    def times(self, count: int) -> Chip:
        """So many of them as one."""
        return Chip(count * self.bytes_per_s, count * self.flop_per_s)


def measure_chip() -> Chip:
    """Copying 2 GiB, and a matrix product of 8192."""
    x, y = (torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    copy_s = _median(lambda: y.copy_(x))
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product_s = _median(lambda: a @ b)
    return Chip(2 * x.nbytes / copy_s, 2 * 8192**3 / product_s)


def _median(run: Callable[[], object], repeats: int = 10) -> float:
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class Bench:
    """One engine and its rows.

    Args:
        beside: vLLM's figures, by row.
    """

    def __init__(
        self, shape: Shape, folder: Path, chip: Chip, repeats: int, wishes: EngineConfig, beside: dict[str, float]
    ) -> None:
        self.shape, self.chip, self.repeats, self.beside, self.ids = shape, chip, repeats, beside, 0
        self.weight_bytes = WEIGHT_BYTES[wishes.quantize]
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.engine = Engine(msgspec.structs.replace(wishes, model_id=str(folder)))
        gc.freeze()  # as the engine's process does
        self.row("load and first step", time.perf_counter() - started, 0, "s")
        self.row("KV capacity", self.engine.info.max_batch_total_tokens, 0, "tokens")
        kinds = sorted({f"{op}={name}" for op, name in self.engine.info.kernels.items() if name != "reference"})
        print(f"# {shape.name}: {', '.join(kinds)}", flush=True)

    def row(self, name: str, value: float, limit: float, unit: str) -> None:
        cells = (f"{x:12.2f}" if x else " " * 12 for x in (value, limit, self.beside.get(name, 0)))
        print(f"{self.shape.name:7} {name:44} {' '.join(cells)} {unit}", flush=True)

    def request(self, prompt: int, output: int, *, prefix: int = 0, sampled: bool = False) -> Request:
        """A new one, which may begin with the same tokens as others."""
        self.ids += 1
        params = {"do_sample": True, **rows.SAMPLED} if sampled else {}
        wish = SamplingParams(max_new_tokens=output, ignore_eos=True, **params)
        ids = rows.prompt_ids(0, prefix) + rows.prompt_ids(self.ids, prompt)
        return Request(id=self.ids, prompt_ids=ids, params=wish)

    def drain(self) -> int:
        """Run to the end; the number of tokens."""
        tokens = 0
        while self.engine.has_work:
            for output in self.engine.step():
                if output.error:
                    raise RuntimeError(output.error)
                tokens += len(output.token_ids)
        return tokens

    def timed(self, run: Callable[[], float]) -> float:
        """Median of the repeats, after a first one that counts for nothing and the moment without work behind it."""
        run()
        while self.engine.prepare():
            pass
        return statistics.median(run() for _ in range(self.repeats))

    def seconds(self, prompt: int, *, count: int = 1, output: int = 1, sampled: bool = False, prefix: int = 0) -> float:
        """To answer so many new prompts that come at once."""
        requests = [self.request(prompt, output, sampled=sampled, prefix=prefix) for _ in range(count)]
        started = time.perf_counter()
        for request in requests:
            self.engine.add(request)
        tokens = self.drain()
        elapsed = time.perf_counter() - started
        if tokens != count * output:
            raise RuntimeError(f"{tokens} tokens came of {count * output}")
        return elapsed

    def decode_steps(self, batch: int, first: int = rows.FIRST, steps: int = rows.STEPS) -> float:
        """Seconds of a decode step."""
        for _ in range(batch):
            self.engine.add(self.request(first, steps + rows.SKIPPED))
        while self.engine.scheduler.waiting or self.engine.stats.kind != "decode":
            self.engine.step()
        for _ in range(rows.SKIPPED // 2):
            self.engine.step()
        started, count = time.perf_counter(), steps - rows.SKIPPED
        for _ in range(count):
            self.engine.step()
        elapsed = time.perf_counter() - started
        self.drain()
        return elapsed / count

    def decode_limit(self, batch: int, context: int) -> float:
        """Milliseconds to read weights, keys and values."""
        weights = self.weight_bytes * self.shape.read_elements(batch)
        return 1e3 * (weights + batch * context * self.shape.token_bytes) / self.chip.bytes_per_s

    def decode(self) -> None:
        for batch in (size for size in rows.BATCHES if size <= self.engine.info.max_batch_size):
            step = self.timed(lambda batch=batch: self.decode_steps(batch))
            self.row(
                rows.decode_row(batch),
                1e3 * step,
                self.decode_limit(batch, rows.FIRST + rows.STEPS // 2),
                "ms",
            )
        if self.engine.info.max_input_tokens > rows.LONG + rows.STEPS:
            step = self.timed(lambda: self.decode_steps(1, rows.LONG, rows.STEPS // 2))
            self.row(
                rows.long_decode_row(rows.LONG),
                1e3 * step,
                self.decode_limit(1, rows.LONG + rows.STEPS // 4),
                "ms",
            )

    def prefill(self) -> None:
        most = self.engine.info.max_input_tokens
        for tokens in rows.prompts_of_first_tokens(most):
            weights = self.weight_bytes * (self.shape.read_elements(tokens) + self.shape.elements("source"))
            limit = max(weights / self.chip.bytes_per_s, self.prompt_flop(tokens) / self.chip.flop_per_s)
            found = self.timed(lambda tokens=tokens: self.seconds(tokens))
            self.row(rows.first_token_row(tokens), 1e3 * found, 1e3 * limit, "ms")
        if self.shape.is_decoder and most > rows.CACHED + rows.TAIL:
            found = self.timed(lambda: self.seconds(rows.TAIL, prefix=rows.CACHED))
            self.row(rows.cached_row(), 1e3 * found, self.decode_limit(1, rows.CACHED), "ms")
        each = min(rows.EACH, most)
        limit = self.chip.flop_per_s * each / self.prompt_flop(each)
        found = self.timed(lambda: 8 * each / self.seconds(each, count=8))
        self.row(rows.prefill_row(each), found, limit, "tokens/s")

    def prompt_flop(self, tokens: int) -> float:
        """To read one prompt, whose tokens see those before, or of an encoder all."""
        seen = tokens * tokens / (2 if self.shape.is_decoder else 1)
        products = tokens * self.shape.token_elements + self.shape.elements("head")
        return 2 * products + 4 * seen * self.shape.inner * self.shape.layers

    def batch(self) -> None:
        for load in rows.LOADS:
            if load.prompt + load.output <= self.engine.info.max_total_tokens:
                self.row(str(load), self.timed(lambda load=load: self.rate(load)), 0, "tokens/s out")

    def rate(self, load: rows.Load) -> float:
        """Tokens of answers per second."""
        count, prompt, output, sampled = load
        return count * output / self.seconds(prompt, count=count, output=output, sampled=sampled)

    def profile(self, batch: int) -> None:
        """Kernels of ten decode steps."""
        from torch.profiler import ProfilerActivity, profile

        for _ in range(batch):
            self.engine.add(self.request(rows.FIRST, rows.STEPS))
        while self.engine.scheduler.waiting or self.engine.stats.kind != "decode":
            self.engine.step()
        for _ in range(8):
            self.engine.step()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            for _ in range(10):
                self.engine.step()
            torch.cuda.synchronize()
        self.drain()
        print(f"# profile of 10 decodes of batch {batch}: share of kernels, microseconds a step, launches a step")
        kernels: dict[str, list[float]] = {}
        spans = []
        for event in found.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                kernels.setdefault(event.name[:70], []).append(event.time_range.elapsed_us())
                spans.append((event.time_range.start, event.time_range.end))
        spans.sort()
        busy = sum(sum(times) for times in kernels.values())
        wall = spans[-1][1] - spans[0][0]
        for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:14]:
            print(f"{100 * sum(times) / busy:5.1f} % {sum(times) / 10:9.1f} us {len(times) / 10:7.1f}  {name}")
        print(f"# kernels {busy / 10:.0f} us a step, from first to last {wall / 10:.0f} us a step")
        ends = accumulate((end for _, end in spans), max)
        gaps = sorted((max(0, start - end) for (start, _), end in zip(spans[1:], ends, strict=False)), reverse=True)
        print(f"# without a kernel {sum(gaps) / 10:.0f} us a step, at most {gaps[0]:.0f} us at a time", flush=True)


def rows_of_vllm(python: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Its figures, by row; none where it cannot run this model, which it tells on standard error."""
    torch.cuda.empty_cache()
    command = [
        python, str(Path(__file__).with_name("vllm_rows.py")), str(folder), "--rows", args.rows,
        "--repeats", str(args.repeats), "--num-shard", str(args.num_shard),
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=False)
    if done.returncode:
        print(f"# vLLM ended with status {done.returncode}", flush=True)
    lines = (json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"row"'))
    return {line["row"]: line["value"] for line in lines}


def main() -> None:
    """Print the rows that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all")
    parser.add_argument("--rows", default="decode,prefill,batch", help="which rows; default: all")
    parser.add_argument("--profile", type=int, action="append", default=[], metavar="BATCH")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-shard", type=int, default=1, metavar="GPUS", help="divide the model over so many")
    parser.add_argument("--deterministic", action="store_true", help="as `tgi serve` takes it")
    parser.add_argument("--kv-cache-dtype", help="as `tgi serve` takes it")
    parser.add_argument("--max-batch-prefill-tokens", type=int, help="as `tgi serve` takes it")
    parser.add_argument("--quantize", choices=[name for name in WEIGHT_BYTES if name], help="as `tgi serve` takes it")
    parser.add_argument(
        "--vllm", metavar="PYTHON", help="an interpreter that has vLLM, to print its figures beside ours"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tgi-bench")
    args = parser.parse_args()
    chip = measure_chip()
    torch.cuda.empty_cache()
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}: {chip.bytes_per_s / 1e12:.2f} TB/s copied, "
          f"{chip.flop_per_s / 1e12:.0f} TFLOP/s bfloat16")  # fmt: skip
    apart = args.deterministic or args.kv_cache_dtype or args.quantize or args.max_batch_prefill_tokens
    if args.vllm and apart:
        parser.error("--vllm compares plain weights, keys and values only; leave the other wishes out")
    found = sys.executable if importlib.util.find_spec("vllm") and not apart else None
    vllm = args.vllm or found
    print(f"{'shape':7} {'row':44} {'ours':>12} {'limit':>12} {'vLLM' if vllm else '':>12}")
    for name in args.shape or SHAPES:
        shape = Shape(name)
        folder = shape.write(args.folder, "cuda")
        beside = rows_of_vllm(vllm, folder, args) if vllm else {}
        wishes = EngineConfig(
            device="cuda", num_shard=args.num_shard, deterministic=args.deterministic,
            kv_cache_dtype=args.kv_cache_dtype, quantize=args.quantize,
            max_batch_prefill_tokens=args.max_batch_prefill_tokens,
        )  # fmt: skip
        bench = Bench(shape, folder, chip.times(args.num_shard), args.repeats, wishes, beside)
        for row in filter(None, args.rows.split(",")):
            getattr(bench, row)()
        for batch in args.profile:
            bench.profile(batch)
        bench.engine.close()
        del bench
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
